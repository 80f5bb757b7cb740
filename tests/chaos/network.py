"""A private network of several hosts, each in a network namespace of its own, whose cables can be pulled.

A switch, in a namespace too, connects each host with two cables: one to the other hosts and to the clients, one to
the database. This process and what it starts have two addresses in the network. A pulled cable carries no packet and
nobody is told, as when a machine or a switch loses its power.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Final

from tests.device_network import ip

OWN: Final = 0
"""The number of this process in the network; the hosts have the numbers from 1 on."""


class Cable(StrEnum):
    """What a cable leads to."""

    CLIENTS = "lan"
    DATABASE = "sql"


class Network:
    """The network of this process. All its names begin with one that no other process has."""

    def __init__(self) -> None:
        self._prefix = f"nrl{os.getpid()}"

    def address(self, number: int, cable: Cable) -> str:
        """The address of a host at a cable."""
        first = 1 if cable is Cable.CLIENTS else 129
        return f"198.19.{os.getpid() % 250}.{first + number}"

    def inside(self, number: int) -> list[str]:
        """What starts a program on a host."""
        return ["ip", "netns", "exec", self._host(number)]

    def cut(self, number: int, cable: Cable) -> None:
        """Pull a cable out of the switch."""
        self._at_switch("link", "set", f"{cable}{number}", "nomaster")

    def heal(self, number: int, cable: Cable) -> None:
        """Plug a cable in again."""
        self._at_switch("link", "set", f"{cable}{number}", "master", cable)

    def _host(self, number: int) -> str:
        return f"{self._prefix}h{number}"

    @property
    def _switch(self) -> str:
        return f"{self._prefix}s"

    def _at_switch(self, *words: str) -> None:
        ip("-n", self._switch, *words)

    @contextmanager
    def built(self, hosts: int) -> Iterator[None]:
        """Build the network of so many hosts, and remove it afterwards. It must not exist already."""
        with ExitStack() as ends:
            self._add_namespace(self._switch, ends)
            for cable in Cable:
                self._at_switch("link", "add", cable, "type", "bridge")
                self._at_switch("link", "set", cable, "up")
            for number in range(1, hosts + 1):
                self._add_namespace(self._host(number), ends)
                ip("-n", self._host(number), "link", "set", "lo", "up")
            for number in range(hosts + 1):
                for cable in Cable:
                    self._connect(number, cable, ends)
            yield

    def _add_namespace(self, name: str, ends: ExitStack) -> None:
        ip("netns", "add", name)
        ends.callback(ip, "netns", "del", name)

    def _connect(self, number: int, cable: Cable, ends: ExitStack) -> None:
        where = ["-n", self._host(number)] if number else []
        name = cable.value if number else f"{self._prefix}{cable}"
        port = f"{cable}{number}"
        ip(*where, "link", "add", name, "type", "veth", "peer", "name", port, "netns", self._switch)
        if number == OWN:
            ends.callback(ip, "link", "del", name, check=False)
        ip(*where, "addr", "add", f"{self.address(number, cable)}/25", "dev", name)
        ip(*where, "link", "set", name, "up")
        self._at_switch("link", "set", port, "master", cable, "up")
