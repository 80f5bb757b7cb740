"""Ansible variables of devices that are reached through forwarded ports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from neops_remote_lab.client.reachable import ORIGINAL, reachable
from neops_remote_lab.models.lab import DeviceInfoDto


class StubForwards:
    """Forwards port N of a device from port 40000 + N of this machine."""

    def __init__(self) -> None:
        self.open: list[tuple[str, int]] = []

    @contextmanager
    def forward(self, device: DeviceInfoDto, port: int) -> Iterator[SimpleNamespace]:
        self.open.append((device.name, port))
        yield SimpleNamespace(host="127.0.0.1", port=40000 + port)
        self.open.remove((device.name, port))


def forwarded(**raw: Any) -> dict[str, Any]:
    """The variables of a device, changed for its forwarded ports."""
    forwards = StubForwards()
    with reachable([DeviceInfoDto(name="r1", raw=raw)], forwards.forward) as devices:  # type: ignore[arg-type]
        assert forwards.open
    assert forwards.open == []
    return devices[0].raw


def test_a_container_is_reached_by_ssh() -> None:
    raw = forwarded(ansible_connection="docker", ansible_host="clab-rl1-r1", ansible_user="root")
    assert (raw["ansible_connection"], raw["ansible_host"], raw["ansible_port"]) == ("ssh", "127.0.0.1", 40022)
    assert raw["ansible_user"] == "root"
    assert "StrictHostKeyChecking=no" in raw["ansible_ssh_common_args"]
    assert raw["ansible_host_key_checking"] is False


def test_the_original_values_are_kept() -> None:
    raw = forwarded(ansible_connection="docker", ansible_host="clab-rl1-r1")
    assert raw[ORIGINAL] == {
        "ansible_connection": "docker",
        "ansible_host": "clab-rl1-r1",
        "ansible_port": None,
        "ansible_host_key_checking": None,
        "ansible_ssh_common_args": None,
    }


@pytest.mark.parametrize(
    ("connection", "port"),
    [
        ("network_cli", 22),
        ("ansible.netcommon.network_cli", 22),
        ("paramiko_ssh", 22),
        ("netconf", 830),
        ("ansible.netcommon.netconf", 830),
    ],
)
def test_a_connection_over_the_network_stays(connection: str, port: int) -> None:
    raw = forwarded(ansible_connection=connection, ansible_host="192.168.121.101")
    assert (raw["ansible_connection"], raw["ansible_port"]) == (connection, 40000 + port)


def test_the_port_of_the_device_is_used() -> None:
    assert forwarded(ansible_connection="ssh", ansible_port=2022)["ansible_port"] == 42022


@pytest.mark.parametrize(("variables", "port"), [({"ansible_httpapi_use_ssl": True}, 443), ({}, 80)])
def test_an_http_api_has_a_separate_port(variables: dict[str, Any], port: int) -> None:
    raw = forwarded(ansible_connection="httpapi", ansible_host="192.168.121.101", **variables)
    assert (raw["ansible_port"], raw["ansible_httpapi_port"]) == (40022, 40000 + port)


def test_settings_of_the_lab_for_host_keys_stay() -> None:
    raw = forwarded(ansible_connection="ssh", ansible_ssh_common_args="-o Ciphers=aes128-ctr")
    assert raw["ansible_ssh_common_args"] == "-o Ciphers=aes128-ctr"


def test_the_devices_of_the_caller_stay_as_they_are() -> None:
    device = DeviceInfoDto(name="r1", raw={"ansible_host": "192.168.121.101"})
    with reachable([device], StubForwards().forward) as devices:  # type: ignore[arg-type]
        assert devices[0].raw["ansible_host"] == "127.0.0.1"
    assert device.raw == {"ansible_host": "192.168.121.101"}
