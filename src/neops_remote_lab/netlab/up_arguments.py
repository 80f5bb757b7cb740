"""Splits the operator's arguments for `netlab up`: those that change the topology are needed by `netlab create`."""

import argparse
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, NoReturn

# The options of `netlab up` in networklab 26.10, with keywords for argparse. `netlab up --snapshot` accepts only those
# that do not change the topology.
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
    """Those that change the topology: accepted by `netlab create`, but not by `netlab up --snapshot`."""
    start: tuple[str, ...] = ()
    """Those that change how nodes are started and configured."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, *options: dict[tuple[str, ...], dict[str, Any]]) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        for flags, keywords in (item for table in options for item in table.items()):
            self.add_argument(*flags, **keywords)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def split(arguments: Sequence[str]) -> UpArguments:
    """Separate the arguments that change the topology from those that change the start.

    Raises:
        ValueError: `netlab up` does not know an argument, or only the server may set it: the topology file,
            `--snapshot`, `--dry-run`.
    """
    _, unknown = _Parser(_OF_THE_TOPOLOGY, _OF_THE_START).parse_known_args(list(arguments))
    if unknown:
        known = ", ".join(flags[-1] for flags in (*_OF_THE_TOPOLOGY, *_OF_THE_START))
        raise ValueError(f"{' '.join(unknown)} cannot be given to `netlab up` here; these can: {known}")
    _, start = _Parser(_OF_THE_TOPOLOGY).parse_known_args(list(arguments))
    _, topology = _Parser(_OF_THE_START).parse_known_args(list(arguments))
    return UpArguments(tuple(topology), tuple(start))
