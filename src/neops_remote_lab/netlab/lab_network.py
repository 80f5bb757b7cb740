"""Checks that nothing else on this host uses the addresses of the labs: Docker accepts them all the same."""

import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from neops_remote_lab.netlab.settings import NetlabSettings

ROUTES: Final = Path("/proc/net/route")
HOST_BITS: Final = 8
"""Size of a lab's management network."""
_DOCKER_BRIDGE: Final = re.compile("br-[0-9a-f]{12}")
"""Docker's names of the bridges of its networks."""
_DESTINATION: Final = 1
_MASK: Final = 7


class Network(NamedTuple):
    """A network that the host reaches through one of its interfaces."""

    interface: str
    network: IPv4Network


def problem(settings: NetlabSettings) -> str | None:
    """Why the setting `lab_network` cannot be used on this host. None if it can, or if no lab needs it.

    A network of Docker that is as large as a lab's does not count: it may be of a lab that is still running, and
    otherwise its number is given to no lab.
    """
    if not settings.several_labs:
        return None
    others = (found for found in in_use(settings.lab_network) if not _is_like_a_labs(found))
    if (met := next(others, None)) is None:
        return None
    return (
        f"the network {settings.lab_network}, from which labs get their management addresses, overlaps with "
        f"{met.network} on the interface {met.interface} of this host. Name another /16 with --lab-network"
    )


def _is_like_a_labs(found: Network) -> bool:
    by_docker = _DOCKER_BRIDGE.fullmatch(found.interface) is not None
    return by_docker and found.network.num_addresses <= 1 << HOST_BITS


def subnet_of(network: IPv4Network, number: int) -> IPv4Network:
    """The part of the labs' network that the lab with a number gets: 10.199.7.0/24 for number 7, for example."""
    return IPv4Network((network[number << HOST_BITS], 32 - HOST_BITS))


def in_use(network: IPv4Network) -> Iterator[Network]:
    """The host's networks that overlap with a network."""
    return (found for found in (*_addresses(), *_routes()) if found.network.overlaps(network))


def _addresses() -> Iterator[Network]:
    for interface, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET:
                yield Network(interface, IPv4Network((address.address, address.netmask or "255.255.255.255"), False))


def _routes() -> Iterator[Network]:
    """The routes of the main table, except default routes."""
    for line in ROUTES.read_text().splitlines()[1:] if ROUTES.exists() else ():
        fields = line.split()
        address, mask = (socket.ntohl(int(fields[field], 16)) for field in (_DESTINATION, _MASK))
        if mask:
            yield Network(fields[0], IPv4Network((address, str(IPv4Address(mask)))))
