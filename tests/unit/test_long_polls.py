"""When long polls are answered."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.queue.long_polls import BATCH, NEAR, LongPolls
from neops_remote_lab.queue.session_cache import SessionCache
from neops_remote_lab.store.rows import Session

JOINED = datetime(2026, 1, 1, tzinfo=UTC)


class Line:
    """Sessions in a row, each with one call that is held."""

    def __init__(self, count: int) -> None:
        self.ids = [f"s{number}" for number in range(1, count + 1)]
        self.cache = SessionCache()
        for number, session_id in enumerate(self.ids, 1):
            self.cache.put(Session(number, number, session_id, SessionState.WAITING, None, None, JOINED, None), 0)
        self.polls = LongPolls(self.cache)
        self.held = {session_id: self.hold(session_id) for session_id in self.ids}
        self.answered: list[str] = []

    def hold(self, session_id: str) -> asyncio.Task[None]:
        call = asyncio.create_task(self.polls.hold(session_id, self.place(session_id), 60))
        call.add_done_callback(lambda _: self.answered.append(session_id))
        return call

    def place(self, session_id: str) -> int:
        session = self.cache.get(session_id)
        assert session
        return self.cache.position(session)

    def leave(self, session_id: str) -> None:
        """One session leaves, and those behind it move up."""
        self.cache.drop(session_id)
        self.polls.answer([session_id])
        self.polls.moved()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - of conditions that nothing announces
                await asyncio.sleep(0.001)

    async def largest_batch(self) -> int:
        """The most calls that are answered in one turn of the loop, until all are."""
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


def with_line(count: int, work: Callable[[Line], Awaitable[None]]) -> None:
    async def run() -> None:
        line = Line(count)
        await asyncio.sleep(0)  # every call is held now
        try:
            await work(line)
        finally:
            await line.close()

    asyncio.run(run())


def test_only_sessions_behind_a_change_are_answered() -> None:
    async def work(line: Line) -> None:
        line.leave("s3")
        await line.until(lambda: set(line.answered) >= {"s3", "s4", "s5"})
        assert not {"s1", "s2"} & set(line.answered)
        line.leave("s1")  # those who were held on are still told of later changes
        await line.until(lambda: "s2" in line.answered)

    with_line(5, work)


def test_the_session_itself_comes_first() -> None:
    async def work(line: Line) -> None:
        line.leave("s1")
        await line.until(lambda: len(line.answered) == 10)
        assert line.answered[0] == "s1"

    with_line(10, work)


def test_sessions_far_back_are_answered_once_they_come_near() -> None:
    async def work(line: Line) -> None:
        line.leave("s1")
        near = set(line.ids[: NEAR + 1])
        await line.until(lambda: set(line.answered) == near)
        line.leave("s2")
        await line.until(lambda: set(line.answered) == near | {line.ids[NEAR + 1]})

    with_line(3 * NEAR, work)


def test_the_event_loop_runs_between_batches_of_answers() -> None:
    async def work(line: Line) -> None:
        line.polls.answer_all()
        assert await line.largest_batch() <= BATCH

    with_line(40 * BATCH, work)


def test_many_calls_of_one_session_are_answered_in_batches_too() -> None:
    async def work(line: Line) -> None:
        for number in range(10 * BATCH):
            line.held[f"more {number}"] = line.hold("s1")
        await asyncio.sleep(0)
        line.polls.answer(["s1"])
        assert await line.largest_batch() <= BATCH

    with_line(1, work)


def test_completed_calls_are_forgotten() -> None:
    async def work(line: Line) -> None:
        await line.polls.hold("nobody", 1, 0)
        assert set(line.polls._held) == {"s1"}

    with_line(1, work)


@pytest.mark.parametrize("position", [None, 1])
def test_a_call_ends_after_its_time(position: int | None) -> None:
    async def work(line: Line) -> None:
        await line.polls.hold("s1", position, 0.001)

    with_line(1, work)


def test_calls_that_wait_only_for_activation_are_not_answered_for_positions() -> None:
    async def work(line: Line) -> None:
        turn = asyncio.create_task(line.polls.hold("s3", None, 60))
        await asyncio.sleep(0)
        line.leave("s1")
        await line.until(lambda: "s3" in line.answered)
        assert not turn.done()
        line.polls.answer(["s3"])
        await turn

    with_line(3, work)
