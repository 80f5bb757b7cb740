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
ALL_DEVICES: Final = f"type(nodes)([('devices', [[n, {_RAW}] for n, d in nodes.items()])])"

Inspect = Callable[[Sequence[str]], str]
"""Runs `netlab inspect` with these arguments in the lab's work folder, and returns what it prints."""


def read_devices(inspect: Inspect) -> list[DeviceInfoDto]:
    """All nodes of the lab, by one netlab process; by one a node where this netlab has no such function.

    Raises:
        ValueError: netlab printed something else than a JSON object.
        Whatever `inspect` raises.
    """
    try:
        nodes = dict(_object(inspect(["--format", "json", ALL_DEVICES]))["devices"])
    except (subprocess.CalledProcessError, ValueError, LookupError):
        nodes = {name: _object(inspect(["--node", name, "--format", "json"])) for name in _names(inspect)}
    return [DeviceInfoDto(name=name, raw=raw) for name, raw in nodes.items()]


def read_links(inspect: Inspect) -> int:
    """The number of links. Raises what `inspect` raises."""
    return len(json.loads(inspect(["--format", "json", "links"])))


def _names(inspect: Inspect) -> list[str]:
    return list(_object(inspect(["--format", "json", "nodes"])))


def _object(printed: str) -> dict[str, Any]:
    value = json.loads(printed)
    if not isinstance(value, dict):
        raise ValueError(f"netlab printed {type(value).__name__} instead of an object: {printed[:200]!r}")
    return value
