"""The devices of a lab as the tools of network automation take them. No I/O.

The variables of a host are all that netlab knows of the node. They come from the lab host: Ansible evaluates them, so
who uses the inventory trusts that host, and whoever wrote the topology.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from neops_remote_lab.models.lab import DeviceInfoDto

NORNIR_CONFIG: Final = "nornir.yaml"
_NOT_IN_GROUP: Final = re.compile(r"[^A-Za-z0-9_]")
_UNKNOWN: Final = "unknown"
_CONTAINER: Final = "docker"
"""The connection of nodes that Ansible reaches by `docker exec`; their address is the name of a container."""


def as_json(devices: Sequence[DeviceInfoDto]) -> str:
    """A JSON array of `{name, raw}`, as the server answers it."""
    return json.dumps([device.model_dump(mode="json") for device in devices], indent=2) + "\n"


def for_ansible(devices: Sequence[DeviceInfoDto]) -> str:
    """An inventory in YAML, with a group for each device type."""
    groups: dict[str, dict[str, Any]] = {}
    for device in devices:
        groups.setdefault(_group(device), {"hosts": {}})["hosts"][device.name] = device.raw
    return _yaml({"all": {"children": groups}})


def for_nornir(devices: Sequence[DeviceInfoDto], directory: Path) -> dict[str, str]:
    """The files of a SimpleInventory, by name, and the configuration that names them, `NORNIR_CONFIG`.

    Args:
        devices: the devices.
        directory: where the files are going to lie.
    """
    files = {"host_file": "hosts.yaml", "group_file": "groups.yaml", "defaults_file": "defaults.yaml"}
    options = {option: str(directory / name) for option, name in files.items()}
    return {
        "hosts.yaml": _yaml({device.name: _nornir_host(device) for device in devices}),
        "groups.yaml": _yaml({_group(device): {} for device in devices}),
        "defaults.yaml": _yaml({}),
        NORNIR_CONFIG: _yaml({"inventory": {"plugin": "SimpleInventory", "options": options}}),
    }


def _nornir_host(device: DeviceInfoDto) -> dict[str, Any]:
    raw = device.raw
    known = {
        "hostname": address(device),
        "port": raw.get("ansible_port"),
        "username": raw.get("ansible_user"),
        "password": password(device),
        "platform": _platform(device),
    }
    found = {name: value for name, value in known.items() if value is not None}
    return found | {"groups": [_group(device)], "data": raw}


def address(device: DeviceInfoDto) -> str | None:
    """Where the device listens: an address or a host name."""
    raw = device.raw
    management = raw.get("mgmt") or {}
    managed: str | None = management.get("ipv4") or management.get("ipv6")
    host: str | None = raw.get("ansible_host")
    return (managed or host) if raw.get("ansible_connection") == _CONTAINER else (host or managed)


def password(device: DeviceInfoDto) -> str | None:
    """What logs in, beside `ansible_user`; None where netlab knows of none."""
    names: Iterable[str] = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
    return next((str(device.raw[name]) for name in names if device.raw.get(name)), None)


def _platform(device: DeviceInfoDto) -> str | None:
    """The network operating system, without the collection that Ansible has it from: `ios` of `cisco.ios.ios`."""
    system = device.raw.get("ansible_network_os")
    return str(system).rpartition(".")[2] if system else None


def _group(device: DeviceInfoDto) -> str:
    """A name that Ansible takes for a group."""
    name = _NOT_IN_GROUP.sub("_", _platform(device) or _UNKNOWN)
    return f"_{name}" if name[:1].isdigit() else name


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
