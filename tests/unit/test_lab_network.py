"""Networks of a host that overlap with the network of the labs."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from neops_remote_lab.netlab import lab_network
from neops_remote_lab.netlab.settings import NetlabSettings

HEADINGS = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
SEVERAL = NetlabSettings(slots=2)


def little_endian(address: str) -> str:
    return "".join(f"{int(part):02X}" for part in reversed(address.split(".")))


@pytest.fixture
def host_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def make(interface: str, network: str) -> None:
        found = IPv4Network(network)
        fields = [interface, little_endian(str(found.network_address)), "00000000", "0001", "0", "0", "0"]
        (tmp_path / "route").write_text(
            HEADINGS + "\t".join([*fields, little_endian(str(found.netmask)), "0", "0", "0\n"])
        )
        monkeypatch.setattr(lab_network, "ROUTES", tmp_path / "route")

    return make


@pytest.mark.parametrize(
    ("interface", "network"),
    [
        ("tun0", "10.0.0.0/8"),
        ("eth1", "10.199.3.0/24"),
        ("docker0", "10.199.0.0/16"),
        ("br-0123456789ab", "10.199.0.0/20"),
    ],
)
def test_a_network_that_overlaps_is_reported(
    host_with: Callable[[str, str], None], interface: str, network: str
) -> None:
    host_with(interface, network)
    problem = lab_network.problem(SEVERAL)
    assert problem
    assert f"overlaps with {network} on the interface {interface}" in problem
    assert lab_network.problem(NetlabSettings()) is None


@pytest.mark.parametrize(
    ("interface", "network"),
    [("eth1", "0.0.0.0/0"), ("eth1", "10.198.0.0/16"), ("br-0123456789ab", "10.199.7.0/24")],
)
def test_other_networks_and_those_of_labs_are_not_reported(
    host_with: Callable[[str, str], None], interface: str, network: str
) -> None:
    host_with(interface, network)
    assert lab_network.problem(SEVERAL) is None


def test_each_number_has_its_own_network() -> None:
    assert str(lab_network.subnet_of(IPv4Network("10.199.0.0/16"), 200)) == "10.199.200.0/24"
