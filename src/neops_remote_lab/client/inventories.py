"""Inventories of a lab's devices for network automation tools. No I/O.

The variables of a device are all of netlab's data for it. They come from the lab host, and Ansible evaluates them:
users of an inventory must trust the lab host and the author of the topology.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from neops_remote_lab.client.addresses import address_of
from neops_remote_lab.models.lab import DeviceInfoDto

NORNIR_CONFIG: Final = "nornir.yaml"
_NOT_IN_GROUP: Final = re.compile(r"[^A-Za-z0-9_]")
_UNKNOWN: Final = "unknown"


def as_json(devices: Sequence[DeviceInfoDto]) -> str:
    """A JSON array of `{name, raw}`, as in the HTTP API."""
    return json.dumps([device.model_dump(mode="json") for device in devices], indent=2) + "\n"


def for_ansible(devices: Sequence[DeviceInfoDto]) -> str:
    """An Ansible inventory in YAML, with a group for each device type."""
    groups: dict[str, dict[str, Any]] = {}
    for device in devices:
        groups.setdefault(_group(device), {"hosts": {}})["hosts"][device.name] = device.raw
    return _yaml({"all": {"children": groups}})


def for_nornir(devices: Sequence[DeviceInfoDto], directory: Path) -> dict[str, str]:
    """The files of a Nornir SimpleInventory and its configuration (`NORNIR_CONFIG`), as contents by file name.

    Args:
        devices: the devices.
        directory: the directory in which the caller will write the files.
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
        "hostname": address_of(device),
        "port": raw.get("ansible_port"),
        "username": raw.get("ansible_user"),
        "password": password(device),
        "platform": _platform(device),
    }
    found = {name: value for name, value in known.items() if value is not None}
    return found | {"groups": [_group(device)], "data": raw}


def password(device: DeviceInfoDto) -> str | None:
    """The password for `ansible_user`; None if netlab has none."""
    names: Iterable[str] = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
    return next((str(device.raw[name]) for name in names if device.raw.get(name)), None)


def _platform(device: DeviceInfoDto) -> str | None:
    """The network operating system without its Ansible collection: `ios` for `cisco.ios.ios`."""
    system = device.raw.get("ansible_network_os")
    return str(system).rpartition(".")[2] if system else None


def _group(device: DeviceInfoDto) -> str:
    """A valid Ansible group name for the device type."""
    name = _NOT_IN_GROUP.sub("_", _platform(device) or _UNKNOWN)
    return f"_{name}" if name[:1].isdigit() else name


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
