"""The session queue on each database: concurrent calls, and changes by other servers."""

from __future__ import annotations

import asyncio

import pytest_asyncio

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EndCode, HostState
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import Registration
from tests.conformance.conftest import Opener
from tests.stores import HOST, NOON


@pytest_asyncio.fixture
async def queue(sessions: SessionStore) -> SessionQueue:
    queue = SessionQueue(sessions, QueueSettings(), Clock(), host=HOST)
    await queue.load()
    return queue


async def join(queue: SessionQueue, key: str | None = None) -> str:
    return (await queue.join(client=None, purpose=None, key=key)).session.session_id


async def test_a_join_during_the_end_of_the_active_session_becomes_active(queue: SessionQueue) -> None:
    for _ in range(10):
        holder = await join(queue)
        assert queue.is_active(holder)
        _, joined = await asyncio.gather(queue.end(holder), join(queue))
        place = queue.place(joined)
        assert place
        assert place.position == 0
        await queue.end(joined)


async def test_a_join_returns_the_current_position(queue: SessionQueue) -> None:
    holder = await join(queue)
    places = await asyncio.gather(*(queue.join(client=None, purpose=None, key=None) for _ in range(5)))
    assert [place.position for place in places] == [1, 2, 3, 4, 5]
    assert [queue.place(place.session.session_id) for place in places] == places
    await queue.end(holder)


async def test_the_successor_of_a_session_that_others_have_ended_is_alone_in_its_slot(
    sessions: SessionStore, open_stores: Opener
) -> None:
    queue = SessionQueue(sessions, QueueSettings(), Clock(), host=HOST, is_shared=True)
    await queue.load()
    holder, successor = [await join(queue) for _ in range(2)]
    async with open_stores() as other:
        await other.sessions().end([holder], EndCode.OPERATOR, "lunch", NOON)
    await queue.learn(successor)
    assert queue.is_active(successor)
    assert not queue.is_live(holder)


async def test_a_session_that_others_take_from_a_silent_host_is_noticed_when_it_calls(
    sessions: SessionStore, open_stores: Opener
) -> None:
    queue = SessionQueue(sessions, QueueSettings(), Clock(), host=HOST, is_shared=True)
    await queue.load()
    holder = await join(queue)
    async with open_stores() as other:
        [host] = await other.sessions("lab-8").hosts()
        await other.sessions("lab-8").declare(host, HostState.SILENT, NOON)
    await queue.learn(holder)
    assert not queue.is_active(holder)
    assert queue.is_waiting(holder)


async def test_a_session_in_a_closed_slot_does_not_occupy_an_open_one(
    queue: SessionQueue, sessions: SessionStore
) -> None:
    await sessions.register_host(Registration("boot-1", 2))
    await queue.reconcile()
    in_first_slot, in_second_slot = await join(queue), await join(queue)
    await sessions.register_host(Registration("boot-1", 1))
    await queue.reconcile()
    assert queue.is_active(in_second_slot)
    await queue.end(in_first_slot)
    assert queue.is_active(await join(queue))
    assert not queue.is_active(await join(queue))
