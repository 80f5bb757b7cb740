"""When a server declares another host silent or gone, on its own clock."""

from __future__ import annotations

import pytest
import pytest_asyncio

from neops_remote_lab.core.codes import HostState
from neops_remote_lab.queue.host_liveness import HostLiveness
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import DatabaseError, SessionStore
from neops_remote_lab.store.rows import Registration
from tests.models import HandClock
from tests.stores import HOST, OpenStores

LEASE, GONE_AFTER = 15.0, 600.0


class Watch:
    """A server that looks at another host, which shows no sign of life."""

    def __init__(self, store: SessionStore, other: str) -> None:
        self.store, self.other, self.clock = store, other, HandClock()
        queue = SessionQueue(store, QueueSettings(), self.clock, host=HOST, is_shared=True)
        settings = QueueSettings(host_lease=LEASE, host_gone_after=GONE_AFTER)
        self.liveness = HostLiveness(store, queue, settings, self.clock, host=HOST, is_shared=True)

    async def after(self, seconds: float) -> HostState:
        """The state of the other host, after a look at this time."""
        self.clock.seconds = seconds
        await self.liveness.look()
        return next(host.state for host in await self.store.hosts() if host.name == self.other)


@pytest_asyncio.fixture
async def watch(stores: OpenStores) -> Watch:
    await stores.sessions("lab-8").register_host(Registration("boot-2"))
    watch = Watch(stores.sessions(), "lab-8")
    await watch.liveness.register("boot-1")
    return watch


async def test_a_host_is_silent_after_its_lease_and_gone_later(watch: Watch) -> None:
    assert await watch.after(0) is HostState.LIVE
    assert await watch.after(LEASE - 1) is HostState.LIVE
    assert await watch.after(LEASE + 1) is HostState.SILENT
    assert await watch.after(GONE_AFTER - 1) is HostState.SILENT
    assert await watch.after(GONE_AFTER + 1) is HostState.GONE


async def test_each_beat_starts_the_lease_anew(watch: Watch, stores: OpenStores) -> None:
    assert await watch.after(0) is HostState.LIVE
    await stores.sessions("lab-8").beat()
    assert await watch.after(LEASE - 1) is HostState.LIVE
    assert await watch.after(2 * LEASE - 2) is HostState.LIVE
    assert await watch.after(2 * LEASE + 1) is HostState.SILENT


async def test_time_without_the_database_counts_against_no_host(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await watch.after(0) is HostState.LIVE

    async def away() -> bool:
        raise DatabaseError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(watch.store, "beat", away)
        with pytest.raises(DatabaseError):
            await watch.after(5)
    assert await watch.after(10 * LEASE) is HostState.LIVE
    assert await watch.after(11 * LEASE + 1) is HostState.SILENT
