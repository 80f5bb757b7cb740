"""The lab hosts of a queue, as the database knew them at the latest look."""

import asyncio
import math
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import HostState
from neops_remote_lab.store.protocol import Fenced
from neops_remote_lab.store.rows import Host, Session


class Owner(NamedTuple):
    """The host that a session is active on, and the URL of its server."""

    host: str
    address: str


CERTAIN: Final = 0.8
"""The part of the lease after a sign of life in which no other server can find its host silent."""


class KnownHosts:
    """The hosts that serve a queue. One of them is this server's own."""

    def __init__(self, own: str, clock: Clock, lease: float | None) -> None:
        """Create an empty set of hosts; `update` fills it.

        Args:
            own: the name of this server's host.
            clock: measures the lease.
            lease: seconds without a beat after which other servers declare a host silent; None if there are none.
        """
        self._own = own
        self._clock = clock
        self._lease = lease
        self._hosts: dict[str, Host] = {}
        self._own_beat = -math.inf
        self._silences: dict[str, asyncio.Future[None]] = {}

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def update(self, hosts: Iterable[Host]) -> None:
        """Replace what is known."""
        self._hosts = {host.name: host for host in hosts}
        self._note_silences()

    def own_beats(self, began: float) -> None:
        """Note when this server began to show a sign of life that succeeded, in monotonic seconds.

        Call it once everything is known that other servers did before that.
        """
        self._own_beat = began

    @property
    def is_own_live(self) -> bool:
        """Whether it is certain that no other server has declared this server's host silent. For any thread."""
        return self._lease is None or self._clock.monotonic() - self._own_beat < CERTAIN * self._lease

    def require_own_live(self) -> None:
        """Raise `Fenced` unless `is_own_live`. For any thread."""
        if not self.is_own_live:
            raise Fenced("this lab host has shown no sign of life for so long that others may have declared it silent")

    def is_own(self, session: Session) -> bool:
        """Whether a session is active on this server's host."""
        return session.host == self._own

    @property
    def own(self) -> Host | None:
        """This server's host; None before it is registered."""
        return self._hosts.get(self._own)

    @property
    def capacity(self) -> int:
        """The number of sessions that can be active at once."""
        return sum(host.slots for host in self if host.serves)

    @property
    def wait_for_memory(self) -> bool:
        """Whether no session can become active until a host has memory for a lab that waits."""
        return bool(self.capacity) and not any(host.admits for host in self)

    def have_room(self, active: Iterable[Session]) -> bool:
        """Whether a host may have a free slot beside these active sessions; the database knows it exactly."""
        busy = {(session.host, session.slot) for session in active}  # some perhaps in slots that were closed since
        return any((host.name, slot) not in busy for host in self if host.admits for slot in host.open_slots)

    def owner_of(self, session: Session) -> Owner | None:
        """The other host that a session is active on; None if there is none, or its server cannot be called."""
        if session.host is None or self.is_own(session):
            return None
        host = self._hosts.get(session.host)
        return Owner(host.name, host.address) if host and host.address else None

    def silence_of(self, name: str) -> asyncio.Future[None]:
        """A future that is done when a host is declared silent or gone. Its callers share it and do not cancel it."""
        silence = self._silences.setdefault(name, asyncio.get_running_loop().create_future())
        self._note_silences()
        return silence

    def _note_silences(self) -> None:
        live = {host.name for host in self if host.state is HostState.LIVE}
        for name in self._silences.keys() - live:
            self._silences.pop(name).set_result(None)
