"""Looks at the inventory that netlab made: names, addresses, and how the hosts are to be logged in to."""

import logging
from ipaddress import IPv4Interface, IPv4Network

from neops_remote_lab.models import DeviceInfoDto

log = logging.getLogger(__name__)


def networks(host: DeviceInfoDto) -> set[IPv4Network]:
    """The networks that a host has an interface in."""
    return {IPv4Interface(interface["ipv4"]).network for interface in host.raw["interfaces"]}


def test_every_host_can_be_logged_in_to(testbed: list[DeviceInfoDto]) -> None:
    for host in testbed:
        log.info("%s: %s@%s", host.name, host.raw["ansible_user"], host.raw["mgmt"]["ipv4"])
    assert [host.name for host in testbed] == ["h1", "h2", "h3"]
    assert all(host.raw["ansible_user"] and host.raw["ansible_network_os"] == "linux" for host in testbed)


def test_management_addresses_are_unique(testbed: list[DeviceInfoDto]) -> None:
    assert len({host.raw["mgmt"]["ipv4"] for host in testbed}) == len(testbed)


def test_neighbours_share_a_network(testbed: list[DeviceInfoDto]) -> None:
    first, second, third = testbed
    assert networks(first) & networks(second)
    assert networks(second) & networks(third)
    assert not networks(first) & networks(third)
