"""Several servers with one queue, and the model that they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from neops_remote_lab.core.codes import HostState
from neops_remote_lab.queue.host_liveness import HostLiveness
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.opening import Stores
from neops_remote_lab.store.settings import StoreSettings
from tests.models import HandClock

Seat = tuple[int, str]
"""A slot and its host, in the order in which seats are filled."""


class Server:
    """What a server process has of the queue: a connection, the queue, and the life of its host."""

    def __init__(self, url: str, name: str, slots: int) -> None:
        self.name = name
        self.stores = Stores(StoreSettings(database=url, synchronous="NORMAL"))
        self.sessions = self.stores.sessions(name)
        clock, settings, is_shared = HandClock(), QueueSettings(), self.stores.database.is_shared
        self.queue = SessionQueue(self.sessions, settings, clock, host=name, slots=slots, is_shared=is_shared)
        self.liveness = HostLiveness(self.sessions, self.queue, settings, clock, host=name, is_shared=is_shared)

    async def start(self) -> None:
        await self.liveness.register("boot")
        await self.stores.database.changes()
        await self.queue.load()

    async def look(self) -> None:
        """Do what the maintenance loop does; afterwards the server knows everything."""
        await self.queue.reconcile(await self.stores.database.changes())
        assert list(self.queue) == await self.sessions.live_sessions()
        known, true = list(self.queue.hosts), await self.sessions.hosts()
        assert [replace(host, beat=0) for host in known] == [replace(host, beat=0) for host in true]


@dataclass
class Host:
    """A host, as the model knows it."""

    slots: int
    state: HostState = HostState.LIVE
    is_draining: bool = False
    is_quarantined: bool = False
    holds_grants: bool = False
    is_fenced: bool = False
    """Its server serves an epoch that has ended, and does not know it."""
    labs: dict[int, str] = field(default_factory=dict)
    """The session of the live lab in each slot."""

    @property
    def admits(self) -> bool:
        return self.state is HostState.LIVE and not (self.is_draining or self.is_quarantined or self.holds_grants)

    def register(self) -> None:
        self.state, self.is_fenced, self.holds_grants = HostState.LIVE, False, False


@dataclass
class Model:
    """The queue as one would explain it."""

    hosts: dict[str, Host] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rank and number of every session that ever joined."""
    waiting: set[str] = field(default_factory=set)
    active: dict[str, Seat] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """The session that joined last with each key."""
    last_rank: int = 0

    @property
    def order(self) -> list[str]:
        return sorted(self.waiting, key=lambda name: self.places[name])

    @property
    def live(self) -> list[str]:
        return [*self.seated, *self.order]

    @property
    def seated(self) -> list[str]:
        """The active sessions by seat: ids are random, and would differ in a repetition."""
        return sorted(self.active, key=lambda name: self.active[name])

    @property
    def ended(self) -> list[str]:
        return [name for name in self.places if name not in self.waiting and name not in self.active]

    @property
    def free(self) -> list[Seat]:
        able = [(name, host) for name, host in self.hosts.items() if host.admits]
        seats = {(slot, name) for name, host in able for slot in range(1, host.slots + 1)}
        return sorted(seats - set(self.active.values()))

    def move(self, session_id: str, rank: int) -> None:
        self.places[session_id] = rank, self.places[session_id][1]
        self.last_rank = max(self.last_rank, rank)

    def leave(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            self.waiting.discard(session_id)
            self.active.pop(session_id, None)

    def wait_again(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            del self.active[session_id]
            self.waiting.add(session_id)

    def active_on(self, name: str) -> list[str]:
        return [session_id for session_id, (_, host) in self.active.items() if host == name]

    def declare(self, name: str, state: HostState) -> None:
        host = self.hosts[name]
        host.state, host.is_fenced = state, True
        if state is HostState.GONE:
            self.leave(self.active_on(name))
            host.labs = {}
        else:
            self.wait_again(set(self.active_on(name)) - set(host.labs.values()))
