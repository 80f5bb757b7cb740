"""What netlab knows of a lab's nodes."""

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final

from neops_remote_lab.models.lab import DeviceInfoDto

# `netlab inspect` evaluates a Python expression over the topology, in which no ":" and no "=" may occur. This one does
# for all nodes at once what `inspect --node NAME` does for one, in one process whatever the number of nodes.
_ADJUST: Final = "__import__('netsim.outputs.common', None, None, ['x']).adjust_inventory_host"
_RAW: Final = (
    f"type(nodes)(list({_ADJUST}(d, defaults, None, None, True).items()) + [('_netlab_version', _netlab_version)])"
)
# Pairs in a list keep the topology's order; the keys of what netlab prints are sorted.
_ALL_DEVICES: Final = f"('devices', [[n, {_RAW}] for n, d in nodes.items()])"
# The names of the expression are the topology's own; one without links has no name `links`.
LINKS: Final = "len(globals().get('links') or [])"
ALL: Final = f"type(nodes)([{_ALL_DEVICES}, ('links', {LINKS})])"

Inspect = Callable[[Sequence[str]], str]
"""Runs `netlab inspect` with these arguments in the lab's work directory, and returns what it prints."""


def read_devices(inspect: Inspect) -> list[DeviceInfoDto]:
    """As `read_lab`, without the links."""
    return read_lab(inspect)[0]


def read_lab(inspect: Inspect) -> tuple[list[DeviceInfoDto], int]:
    """All nodes of the lab, and the number of its links, by one netlab process.

    By one a node where this netlab has not the function that tells all.

    Raises:
        ValueError: netlab printed something else than a JSON object.
        Whatever `inspect` raises.
    """
    try:
        found = _object(inspect(["--format", "json", ALL]))
        nodes, links = dict(found["devices"]), int(found["links"])
    except (subprocess.CalledProcessError, ValueError, LookupError):
        nodes = {name: _object(inspect(["--node", name, "--format", "json"])) for name in _names(inspect)}
        links = int(inspect([LINKS]))
    return [DeviceInfoDto(name=name, raw=raw) for name, raw in nodes.items()], links


def _names(inspect: Inspect) -> list[str]:
    return list(_object(inspect(["--format", "json", "nodes"])))


def _object(printed: str) -> dict[str, Any]:
    value = json.loads(printed)
    if not isinstance(value, dict):
        raise ValueError(f"netlab printed {type(value).__name__} instead of an object: {printed[:200]!r}")
    return value
