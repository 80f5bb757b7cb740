"""Finds the containers of a lab's nodes, and their addresses, with Docker.

Addresses and names in a topology are not trustworthy: they may belong to the host or to another lab. A session can
therefore reach only containers that Docker knows as part of its lab, at the address that Docker assigned, through the
bridge that Docker created for the network.
"""

import errno
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from neops_remote_lab.netlab.leftovers import NOT_DOCKER, Docker, all_containers

BRIDGE_OPTION: Final = "com.docker.network.bridge.name"
"""Option of networks with a named bridge, to which anything may be attached."""


class Endpoint(NamedTuple):
    """An address of a container, and the bridge on this host that leads only to the network's containers."""

    interface: str
    address: str


class Node(NamedTuple):
    """A node of a lab that is a container."""

    container: str
    """The full container id."""
    endpoints: tuple[Endpoint, ...] = ()
    """Its addresses; empty without a network created by Docker, for example if it uses the host's network."""


def find_nodes(base: Path, docker: Docker) -> dict[str, Node]:
    """The containers of the lab in the directory `base`, by node name.

    Raises:
        ValueError: the output is not Docker's.
        The exceptions of `docker`.
    """
    # Not those of other labs: Docker fails if it is asked for one that has just been removed.
    running = [each.identifier for each in all_containers(docker) if each.is_running and each.is_below(base)]
    try:
        ours = [container for container in _inspect([], running, docker) if _is_of_lab(container, base)]
        identifiers = {item["NetworkID"] for container in ours for item in _attachments(container)}
        networks = _inspect(["network"], sorted(identifiers - {""}), docker)
        bridges = {network["Id"]: bridge for network in networks if (bridge := _own_bridge(network))}
        return {container["Config"]["Labels"]["clab-node-name"]: _node(container, bridges) for container in ours}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(NOT_DOCKER) from None


def open_socket(endpoint: Endpoint) -> socket.socket:
    """An unconnected TCP socket that is bound to the endpoint's interface.

    Regardless of the host's routes, packets leave only through that interface, so the socket cannot reach another
    machine with the same address.

    Raises:
        OSError: the interface does not exist, this process may not bind to it, or the address belongs to this host.
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
    """Whether a container belongs to a lab. containerlab resolves symbolic links before it writes the label."""
    labels = container["Config"]["Labels"]
    return Path(labels["clab-topo-file"]).is_relative_to(base.resolve()) and "clab-node-name" in labels


def _attachments(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [*container["NetworkSettings"]["Networks"].values()]


def _own_bridge(network: dict[str, Any]) -> str | None:
    """The bridge that Docker created for a network, to which it attaches only containers; None for other networks."""
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
