"""Tests of when a server declares another host silent or gone, by the server's own clock."""

from __future__ import annotations

import pytest
import pytest_asyncio

from neops_remote_lab.core.codes import HostState
from neops_remote_lab.queue.host_liveness import HostLiveness
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import DatabaseError, Fenced, SessionStore
from neops_remote_lab.store.rows import Registration
from tests.models import HandClock
from tests.stores import HOST, NOON, OpenStores

LEASE, GONE_AFTER = 15.0, 600.0


class Observer:
    """A server that observes the beat of another host."""

    def __init__(self, store: SessionStore, other: str) -> None:
        self.store, self.other, self.clock = store, other, HandClock()
        settings = QueueSettings(host_lease=LEASE, host_gone_after=GONE_AFTER)
        self.queue = SessionQueue(store, settings, self.clock, host=HOST, is_shared=True)
        self.liveness = HostLiveness(store, self.queue, settings, self.clock, host=HOST, is_shared=True)

    async def after(self, seconds: float) -> HostState:
        """The state of the other host, after the server has read its beat.

        Args:
            seconds: time of the server's monotonic clock when it reads the beat.
        """
        self.clock.seconds = seconds
        await self.liveness.look()
        return next(host.state for host in await self.store.hosts() if host.name == self.other)


@pytest_asyncio.fixture
async def observer(stores: OpenStores) -> Observer:
    await stores.sessions("lab-8").register_host(Registration("boot-2"))
    observer = Observer(stores.sessions(), "lab-8")
    await observer.liveness.register("boot-1")
    return observer


async def test_a_host_is_silent_after_its_lease_and_gone_later(observer: Observer) -> None:
    assert await observer.after(0) is HostState.LIVE
    assert await observer.after(LEASE - 1) is HostState.LIVE
    assert await observer.after(LEASE + 1) is HostState.SILENT
    assert await observer.after(GONE_AFTER - 1) is HostState.SILENT
    assert await observer.after(GONE_AFTER + 1) is HostState.GONE


async def test_each_beat_renews_the_lease(observer: Observer, stores: OpenStores) -> None:
    assert await observer.after(0) is HostState.LIVE
    await stores.sessions("lab-8").beat()
    assert await observer.after(LEASE - 1) is HostState.LIVE
    assert await observer.after(2 * LEASE - 2) is HostState.LIVE
    assert await observer.after(2 * LEASE + 1) is HostState.SILENT


async def test_time_without_the_database_counts_against_no_host(
    observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await observer.after(0) is HostState.LIVE

    async def fail() -> bool:
        raise DatabaseError("the database cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(observer.store, "beat", fail)
        with pytest.raises(DatabaseError):
            await observer.after(5)
    assert await observer.after(10 * LEASE) is HostState.LIVE
    assert await observer.after(11 * LEASE + 1) is HostState.SILENT


async def test_a_server_that_has_not_beaten_for_most_of_its_lease_must_not_act(observer: Observer) -> None:
    own = observer.queue.hosts
    own.require_own_live()
    observer.clock.seconds += 0.9 * LEASE
    with pytest.raises(Fenced):
        own.require_own_live()
    await observer.liveness.look()
    own.require_own_live()


async def test_a_beat_counts_from_before_its_call(observer: Observer, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = observer.store.beat

    async def slowly() -> bool:
        shown = await beat()
        observer.clock.seconds += LEASE  # the server is suspended before it receives the result
        return shown

    monkeypatch.setattr(observer.store, "beat", slowly)
    await observer.liveness.look()
    with pytest.raises(Fenced):
        observer.queue.hosts.require_own_live()


async def test_a_server_may_act_again_after_it_has_read_what_others_did_meanwhile(
    observer: Observer, stores: OpenStores
) -> None:
    await observer.queue.load()
    session = (await observer.queue.join(client=None, purpose=None, key=None)).session.session_id
    assert observer.queue.is_active(session)
    other = stores.sessions("lab-8")
    [own] = [host for host in await other.hosts() if host.name == HOST]
    await other.declare(own, HostState.GONE, NOON)
    observer.clock.seconds += LEASE
    with pytest.raises(Fenced):
        observer.queue.hosts.require_own_live()
    await observer.liveness.look()
    observer.queue.hosts.require_own_live()
    assert not observer.queue.is_active(session)
