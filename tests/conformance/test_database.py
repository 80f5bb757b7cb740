"""Connections: they detect writes of other programs, and a cancelled call leaves no open transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from neops_remote_lab.core.codes import EndCode
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import ANY_CHANGE
from tests.conformance.conftest import Opener
from tests.stores import NOON, OpenStores, joining


async def test_only_changes_by_other_programs_are_reported(
    open_stores: Opener, stores: OpenStores, sessions: SessionStore
) -> None:
    assert await stores.database.changes() == ANY_CHANGE
    await sessions.join(joining("ann"), promote=True)
    assert not await stores.database.changes()
    async with open_stores() as other:
        await other.sessions().end(["ann"], EndCode.OPERATOR, "lunch", NOON)
    assert await stores.database.changes()
    assert not await stores.database.changes()
    assert await sessions.live_sessions() == []


async def test_a_cancelled_caller_leaves_the_database_usable(stores: OpenStores, sessions: SessionStore) -> None:
    await sessions.join(joining("ann"), promote=True)
    calls: list[Callable[[], Awaitable[object]]] = [
        sessions.live_sessions,
        lambda: sessions.ended("ann"),
        lambda: sessions.promote(NOON),
        lambda: sessions.end(["nobody"], EndCode.CLIENT, "done", NOON),
        stores.database.ping,
    ]
    # The number of turns of the event loop determines at which of its steps a call is cancelled.
    for turns in range(12):
        for call in calls:
            task = asyncio.ensure_future(call())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    await sessions.join(joining("bob"), promote=True)


async def test_the_write_ahead_log_is_measured_and_truncated(stores: OpenStores, sessions: SessionStore) -> None:
    for number in range(20):
        await sessions.join(joining(f"s{number}"), promote=False)
    before = await stores.database.measure_log()
    assert stores.database.log_bytes == before
    assert await stores.database.shrink_log()
    assert await stores.database.measure_log() <= before
