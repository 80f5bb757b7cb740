"""Which container is which node of a lab, and at which address Docker itself has it.

Addresses and names in a topology are its author's: they may be those of the host, of another lab, of anything. What is
reached for a session is therefore a container that Docker knows as one of this very lab, at the address that Docker has
given it, and by way of the bridge that Docker has made for the network.
"""

import errno
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from neops_remote_lab.netlab.leftovers import NOT_DOCKER, Docker

_LISTING: Final = ("ps", "--quiet", "--no-trunc", "--filter", "label=clab-topo-file")
BRIDGE_OPTION: Final = "com.docker.network.bridge.name"
"""Set where a network uses a bridge that somebody has named, to which anything may be attached."""


class Endpoint(NamedTuple):
    """An address of a container, and the interface of this host that leads to it and to nothing else."""

    interface: str
    address: str


class Node(NamedTuple):
    """A node of a lab that runs in a container."""

    container: str
    """The container's whole id."""
    endpoints: tuple[Endpoint, ...] = ()
    """Where it can be reached; empty without a network of Docker's own, for example with that of the host."""


def find_nodes(base: Path, docker: Docker) -> dict[str, Node]:
    """The nodes of the lab whose directory is `base` that run in containers, by their names.

    Raises:
        ValueError: the command prints something else than Docker's command does.
        What `docker` raises.
    """
    try:
        found = _inspect([], docker(_LISTING).split(), docker)
        ours = [container for container in found if _is_of_lab(container, base)]
        identifiers = {item["NetworkID"] for container in ours for item in _attachments(container)}
        networks = _inspect(["network"], sorted(identifiers - {""}), docker)
        bridges = {network["Id"]: bridge for network in networks if (bridge := _own_bridge(network))}
        return {container["Config"]["Labels"]["clab-node-name"]: _node(container, bridges) for container in ours}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(NOT_DOCKER) from None


def open_socket(endpoint: Endpoint) -> socket.socket:
    """A TCP socket, not yet connected, that can reach the endpoint's address on the endpoint's interface alone.

    Whatever the routes of this host are, no packet leaves by another interface, so another machine that has the same
    address is not met.

    Raises:
        OSError: this host has no such interface, this process may not name one, or the address is this host's own.
    """
    with _bound_socket(endpoint, socket.SOCK_DGRAM) as probe:
        probe.connect((endpoint.address, 1))  # sends nothing
        if probe.getsockname()[0] == endpoint.address:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    return _bound_socket(endpoint, socket.SOCK_STREAM)


def _bound_socket(endpoint: Endpoint, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in endpoint.address else socket.AF_INET
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, endpoint.interface.encode())
    except OSError:
        made.close()
        raise
    return made


def _inspect(kind: Sequence[str], identifiers: Sequence[str], docker: Docker) -> list[dict[str, Any]]:
    return list(json.loads(docker([*kind, "inspect", *identifiers]))) if identifiers else []


def _is_of_lab(container: dict[str, Any], base: Path) -> bool:
    """What containerlab writes as a label is a path without symbolic links."""
    labels = container["Config"]["Labels"]
    return Path(labels["clab-topo-file"]).is_relative_to(base.resolve()) and "clab-node-name" in labels


def _attachments(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [*container["NetworkSettings"]["Networks"].values()]


def _own_bridge(network: dict[str, Any]) -> str | None:
    """The bridge that Docker has made for a network, and to which it attaches containers alone."""
    named = (network["Options"] or {}).get(BRIDGE_OPTION)
    return None if named or network["Driver"] != "bridge" else f"br-{network['Id'][:12]}"


def _node(container: dict[str, Any], bridges: dict[str, str]) -> Node:
    endpoints = [
        Endpoint(bridges[item["NetworkID"]], address)
        for item in _attachments(container)
        for address in (item["IPAddress"], item.get("GlobalIPv6Address"))
        if address and item["NetworkID"] in bridges
    ]
    return Node(container["Id"], tuple(endpoints))
