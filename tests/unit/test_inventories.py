"""Inventories of the devices of a lab for Ansible and nornir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from neops_remote_lab.client import inventories
from neops_remote_lab.models.lab import DeviceInfoDto

CONTAINER: dict[str, Any] = {
    "ansible_connection": "docker",
    "ansible_host": "clab-rl0a1b2c3d-r1",
    "ansible_network_os": "frr",
    "ansible_user": "root",
    "mgmt": {"ipv4": "192.168.121.101"},
}
ROUTER: dict[str, Any] = {
    "ansible_connection": "network_cli",
    "ansible_host": "192.168.121.102",
    "ansible_network_os": "cisco.ios.ios",
    "ansible_port": 2022,
    "ansible_ssh_pass": "admin",
    "ansible_user": "vagrant",
}


def device(name: str = "r1", **raw: Any) -> DeviceInfoDto:
    return DeviceInfoDto(name=name, raw=raw)


def nornir_host(**raw: Any) -> dict[str, Any]:
    files = inventories.for_nornir([device(**raw)], Path("/labs"))
    return dict(yaml.safe_load(files["hosts.yaml"])["r1"])


def test_ansible_gets_a_group_for_each_device_type() -> None:
    inventory = yaml.safe_load(inventories.for_ansible([device(**CONTAINER), device("r2", **ROUTER)]))
    assert inventory["all"]["children"] == {
        "frr": {"hosts": {"r1": CONTAINER}},
        "ios": {"hosts": {"r2": ROUTER}},
    }


def test_nornir_reaches_a_container_by_its_address() -> None:
    host = nornir_host(**CONTAINER)
    assert host == {
        "hostname": "192.168.121.101",
        "username": "root",
        "platform": "frr",
        "groups": ["frr"],
        "data": CONTAINER,
    }


def test_nornir_gets_everything_that_a_login_needs() -> None:
    host = nornir_host(**ROUTER)
    assert {name: host[name] for name in ("hostname", "port", "username", "password", "platform")} == {
        "hostname": "192.168.121.102",
        "port": 2022,
        "username": "vagrant",
        "password": "admin",
        "platform": "ios",
    }


def test_the_configuration_has_the_paths_of_its_files() -> None:
    files = inventories.for_nornir([device(**ROUTER)], Path("/labs"))
    options = yaml.safe_load(files[inventories.NORNIR_CONFIG])["inventory"]["options"]
    assert {Path(path).name for path in options.values()} == files.keys() - {inventories.NORNIR_CONFIG}
    assert {Path(path).parent for path in options.values()} == {Path("/labs")}


@pytest.mark.parametrize(("system", "group"), [(None, "unknown"), ("sr-os", "sr_os"), ("6wind", "_6wind")])
def test_a_group_has_a_valid_name_for_ansible(system: str | None, group: str) -> None:
    inventory = yaml.safe_load(inventories.for_ansible([device(ansible_network_os=system)]))
    assert list(inventory["all"]["children"]) == [group]
