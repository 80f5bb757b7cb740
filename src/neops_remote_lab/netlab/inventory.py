"""Reads the nodes of a lab, with all their data, from netlab."""

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from neops_remote_lab.models.lab import DeviceInfoDto

# `netlab inspect` evaluates a Python expression over the topology, which must not contain ":" or "=". This expression
# does for all nodes in one process what `inspect --node NAME` does for one.
_ADJUST: Final = "__import__('netsim.outputs.common', None, None, ['x']).adjust_inventory_host"
_RAW: Final = (
    f"type(nodes)(list({_ADJUST}(d, defaults, None, None, True).items()) + [('_netlab_version', _netlab_version)])"
)
# A list of pairs, because netlab sorts the keys of a mapping, which would lose the topology's order.
_ALL_DEVICES: Final = f"('devices', [[n, {_RAW}] for n, d in nodes.items()])"
# The expression's globals are the topology's keys; a topology without links has no `links`.
LINKS: Final = "len(globals().get('links') or [])"

Inspect = Callable[[Sequence[str]], str]
"""Runs `netlab inspect` with these arguments in the lab's work directory, and returns its output."""


class Inventory(NamedTuple):
    """What netlab made of a topology."""

    devices: list[DeviceInfoDto]
    links: int
    """The number of links."""
    facts: dict[str, Any]
    """The value of an additional expression."""


def read_devices(inspect: Inspect) -> list[DeviceInfoDto]:
    """As `read_lab`, only the nodes."""
    return read_lab(inspect).devices


def read_lab(inspect: Inspect, facts: str = "") -> Inventory:
    """All nodes of the lab, the number of its links, and the value of the expression `facts`, which is a mapping.

    This takes one netlab process, or one per node with a netlab that lacks the internal function for all nodes.

    Raises:
        ValueError: netlab printed something other than a JSON object.
        The exceptions of `inspect`.
    """
    try:
        found = _object(inspect(["--format", "json", _everything(facts)]))
        nodes, links, more = dict(found["devices"]), int(found["links"]), dict(found.get("facts", {}))
    except (subprocess.CalledProcessError, ValueError, LookupError):
        nodes = {name: _object(inspect(["--node", name, "--format", "json"])) for name in _names(inspect)}
        links = int(inspect([LINKS]))
        more = _object(inspect(["--format", "json", facts])) if facts else {}
    return Inventory([DeviceInfoDto(name=name, raw=raw) for name, raw in nodes.items()], links, more)


def _everything(facts: str = "") -> str:
    """The expression for the nodes, the number of links, and `facts`."""
    more = f", ('facts', {facts})" if facts else ""
    return f"type(nodes)([{_ALL_DEVICES}, ('links', {LINKS}){more}])"


def _names(inspect: Inspect) -> list[str]:
    return list(_object(inspect(["--format", "json", "nodes"])))


def _object(printed: str) -> dict[str, Any]:
    value = json.loads(printed)
    if not isinstance(value, dict):
        raise ValueError(f"netlab printed {type(value).__name__} instead of an object: {printed[:200]!r}")
    return value
