"""The operator's arguments for `netlab up`, and which of them a prepared start has to hear earlier."""

import argparse
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

# The options of `netlab up` in networklab 26.10, with what argparse is to know of them. `netlab up --snapshot` takes
# only those that do not change the topology.
_OF_THE_TOPOLOGY: Final[dict[tuple[str, ...], dict[str, Any]]] = {
    ("-d", "--device"): {},
    ("-p", "--provider"): {},
    ("--plugin",): {"action": "append"},
    ("-s", "--set"): {"action": "append"},
    ("--defaults",): {"nargs": "*"},
    ("--debug",): {"nargs": "*"},
}
_OF_THE_START: Final[dict[tuple[str, ...], dict[str, Any]]] = {
    ("-r", "--reload-config"): {},
    ("-v", "--verbose"): {"action": "count"},
    ("-q", "--quiet"): {"action": "store_true"},
    ("--log",): {"action": "store_true"},
    ("--warning",): {"action": "store_true"},
    ("--no-config",): {"action": "store_true"},
    ("--no-tools",): {"action": "store_true"},
    ("--fast-config",): {"action": "store_true"},
    ("--validate",): {"action": "store_true"},
}


class UpArguments(NamedTuple):
    """Arguments for `netlab up`, in two parts."""

    topology: tuple[str, ...] = ()
    """What changes the topology: `netlab create` takes it too, `netlab up --snapshot` does not."""
    start: tuple[str, ...] = ()
    """What changes how nodes are started and configured."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *options: dict[tuple[str, ...], dict[str, Any]]) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for flags, keywords in (item for table in options for item in table.items()):
            self.add_argument(*flags, **keywords)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def split(arguments: Sequence[str]) -> UpArguments:
    """Tell arguments that change the topology from those that change the start.

    Raises:
        ValueError: an argument is none of `netlab up`, or one that only the server may give: the topology's file,
            `--snapshot`, `--dry-run`.
    """
    _, unknown = _Parser(_OF_THE_TOPOLOGY, _OF_THE_START).parse_known_args(list(arguments))
    if unknown:
        known = ", ".join(flags[-1] for flags in (*_OF_THE_TOPOLOGY, *_OF_THE_START))
        raise ValueError(f"{' '.join(unknown)} cannot be given to `netlab up` here; these can: {known}")
    _, start = _Parser(_OF_THE_TOPOLOGY).parse_known_args(list(arguments))
    _, topology = _Parser(_OF_THE_START).parse_known_args(list(arguments))
    return UpArguments(tuple(topology), tuple(start))
