"""Which long polls are answered after a change of the queue, and in what order."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.queue.long_polls import BATCH, NEAR, LongPolls
from neops_remote_lab.queue.session_cache import SessionCache
from neops_remote_lab.store.rows import Session

JOINED = datetime(2026, 1, 1, tzinfo=UTC)


class Queue:
    """A queue of waiting sessions, each with an open long poll."""

    def __init__(self, count: int) -> None:
        self.ids = [f"s{number}" for number in range(1, count + 1)]
        self.cache = SessionCache()
        for number, session_id in enumerate(self.ids, 1):
            self.cache.put(Session(number, number, session_id, SessionState.WAITING, None, None, JOINED, None), 0)
        self.polls = LongPolls(self.cache)
        self.held = {session_id: self.hold(session_id) for session_id in self.ids}
        self.answered: list[str] = []

    def hold(self, session_id: str) -> asyncio.Task[None]:
        call = asyncio.create_task(self.polls.hold(session_id, self.position(session_id), 60))
        call.add_done_callback(lambda _: self.answered.append(session_id))
        return call

    def position(self, session_id: str) -> int:
        session = self.cache.get(session_id)
        assert session
        return self.cache.position(session)

    def leave(self, session_id: str) -> None:
        """End a session, so that those behind it move up."""
        self.cache.drop(session_id)
        self.polls.answer([session_id])
        self.polls.moved()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - nothing signals these conditions
                await asyncio.sleep(0.001)

    async def largest_batch(self) -> int:
        """The maximum number of calls that are answered in one turn of the event loop, until all are answered."""
        largest = 0
        async with asyncio.timeout(30):
            while (before := len(self.answered)) < len(self.held):
                await asyncio.sleep(0)
                largest = max(largest, len(self.answered) - before)
        return largest

    async def close(self) -> None:
        for call in self.held.values():
            call.cancel()
        await asyncio.gather(*self.held.values(), return_exceptions=True)


def with_queue(count: int, work: Callable[[Queue], Awaitable[None]]) -> None:
    async def run() -> None:
        queue = Queue(count)
        await asyncio.sleep(0)  # all long polls are open now
        try:
            await work(queue)
        finally:
            await queue.close()

    asyncio.run(run())


def test_only_sessions_behind_a_change_are_answered() -> None:
    async def work(queue: Queue) -> None:
        queue.leave("s3")
        await queue.until(lambda: set(queue.answered) >= {"s3", "s4", "s5"})
        assert not {"s1", "s2"} & set(queue.answered)
        queue.leave("s1")  # the call of s2 is still open
        await queue.until(lambda: "s2" in queue.answered)

    with_queue(5, work)


def test_the_call_of_the_changed_session_is_answered_first() -> None:
    async def work(queue: Queue) -> None:
        queue.leave("s1")
        await queue.until(lambda: len(queue.answered) == 10)
        assert queue.answered[0] == "s1"

    with_queue(10, work)


def test_sessions_far_from_the_head_are_answered_once_they_are_near_it() -> None:
    async def work(queue: Queue) -> None:
        queue.leave("s1")
        near = set(queue.ids[: NEAR + 1])
        await queue.until(lambda: set(queue.answered) == near)
        queue.leave("s2")
        await queue.until(lambda: set(queue.answered) == near | {queue.ids[NEAR + 1]})

    with_queue(3 * NEAR, work)


def test_the_event_loop_runs_between_batches_of_answers() -> None:
    async def work(queue: Queue) -> None:
        queue.polls.answer_all()
        assert await queue.largest_batch() <= BATCH

    with_queue(40 * BATCH, work)


def test_many_calls_of_one_session_are_answered_in_batches_too() -> None:
    async def work(queue: Queue) -> None:
        for number in range(10 * BATCH):
            queue.held[f"more {number}"] = queue.hold("s1")
        await asyncio.sleep(0)
        queue.polls.answer(["s1"])
        assert await queue.largest_batch() <= BATCH

    with_queue(1, work)


def test_completed_calls_are_removed() -> None:
    async def work(queue: Queue) -> None:
        await queue.polls.hold("nobody", 1, 0)
        assert set(queue.polls._held) == {"s1"}

    with_queue(1, work)


@pytest.mark.parametrize("position", [None, 1])
def test_a_call_ends_after_its_time(position: int | None) -> None:
    async def work(queue: Queue) -> None:
        await queue.polls.hold("s1", position, 0.001)

    with_queue(1, work)


def test_calls_that_wait_only_for_activation_are_not_answered_for_positions() -> None:
    async def work(queue: Queue) -> None:
        activation = asyncio.create_task(queue.polls.hold("s3", None, 60))
        await asyncio.sleep(0)
        queue.leave("s1")
        await queue.until(lambda: "s3" in queue.answered)
        assert not activation.done()
        queue.polls.answer(["s3"])
        await activation

    with_queue(3, work)
