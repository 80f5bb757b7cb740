"""A network of several hosts in network namespaces, whose links can be cut.

A switch, which is a namespace too, has two links to each host: one to the other hosts and the clients, one to the
database. The test process has an address on both. A link that is cut drops all packets, and no connection is closed, as
when a machine or a switch loses power.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Final

from tests.device_network import ip

OWN: Final = 0
"""The number of the test process in the network; the hosts have numbers from 1 on."""


class Cable(StrEnum):
    """A link of a host, by what it connects the host with."""

    CLIENTS = "lan"
    DATABASE = "sql"


class Network:
    """The network of one test process. The names of its interfaces begin with a prefix of the process."""

    def __init__(self) -> None:
        self._prefix = f"nrl{os.getpid()}"

    def address(self, number: int, cable: Cable) -> str:
        """The address of a host on a link."""
        first = 1 if cable is Cable.CLIENTS else 129
        return f"198.19.{os.getpid() % 250}.{first + number}"

    def inside(self, number: int) -> list[str]:
        """The command prefix that starts a program on a host."""
        return ["ip", "netns", "exec", self._host(number)]

    def cut(self, number: int, cable: Cable) -> None:
        """Cut a link of a host."""
        self._at_switch("link", "set", f"{cable}{number}", "nomaster")

    def heal(self, number: int, cable: Cable) -> None:
        """Restore a link of a host."""
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
        """Build a network with this number of hosts, and remove it at the end. It must not exist."""
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
