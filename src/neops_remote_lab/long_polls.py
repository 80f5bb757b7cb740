"""Calls that are held until something changes for their session: its position in the queue, its turn, its end.

Many calls are never answered in one go, which would stall the event loop: the first few at once, the others in batches
between which the loop does everything else. Nothing here looks at calls that are not due, however many are held.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

BATCH: Final = 16
"""Calls that are answered at a time."""
BATCH_PAUSE: Final = 0.002
"""Seconds between two batches."""
POSITION_DELAY: Final = 0.02
"""Seconds until the first is told that its position has changed: whoever has become active comes first."""
POSITION_PACE: Final = 0.2
"""Seconds between two rounds of such answers, so that many sessions that end at once cost one round."""
NEAR: Final = 20
"""Sessions up to this position are told of each change, those further back when it has changed by 1 in so many."""
SPARE: Final = 1000
"""Entries of calls that are over which may be kept until they are sorted out."""


@dataclass(eq=False, slots=True)
class _Poll:
    session_id: str
    position: int
    answer: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LongPolls:
    """The calls that are held."""

    def __init__(self, position: Callable[[str], int | None]) -> None:
        """`position`: where a session is now; None when it is not live."""
        self._position = position
        self._held: dict[str, set[_Poll]] = {}
        self._ready: deque[_Poll] = deque()
        self._answering: asyncio.TimerHandle | None = None
        # A session moves up by one whenever somebody before it leaves, so a call is due at a count of such moves that
        # is known when it begins.
        self._moves = 0
        self._due: list[tuple[int, int, _Poll]] = []
        self._numbers = count()
        self._telling: asyncio.TimerHandle | None = None

    async def hold(self, session_id: str, position: int | None, seconds: float) -> None:
        """Return when the session is answered, or `seconds` are over; with a position also when that has changed."""
        poll = _Poll(session_id, position or 0)
        self._held.setdefault(session_id, set()).add(poll)
        if position is not None:
            self._expect(poll)
        try:
            await asyncio.wait([poll.answer], timeout=None if seconds == math.inf else seconds)
        finally:
            poll.answer.cancel()
            polls = self._held[session_id]
            polls.discard(poll)
            if not polls:
                del self._held[session_id]

    def answer(self, session_ids: Iterable[str]) -> None:
        """Answer the calls of these sessions, the first ones at once."""
        at_once = BATCH
        for session_id in session_ids:
            for poll in self._held.get(session_id, ()):
                if at_once:
                    at_once -= not poll.answer.done()
                    _answer(poll)
                else:
                    self._ready.append(poll)
        if self._ready and self._answering is None:
            self._answering = asyncio.get_running_loop().call_later(BATCH_PAUSE, self._answer_batch)

    def answer_all(self) -> None:
        """Answer every call."""
        self.answer(list(self._held))

    def moved(self, places: int = 1) -> None:
        """Those who wait have moved up, all of them or some."""
        self._moves += places
        if self._telling is None and self._someone_is_due():
            self._telling = asyncio.get_running_loop().call_later(POSITION_DELAY, self._tell_batch)

    def _answer_batch(self) -> None:
        self._answering = None
        for _ in range(min(BATCH, len(self._ready))):
            _answer(self._ready.popleft())
        if self._ready:
            self._answering = asyncio.get_running_loop().call_later(BATCH_PAUSE, self._answer_batch)

    def _expect(self, poll: _Poll) -> None:
        if len(self._due) > 2 * len(self._held) + SPARE:
            self._due = [entry for entry in self._due if not entry[2].answer.done()]
            heapify(self._due)
        heappush(self._due, (self._moves + max(1, poll.position // NEAR), next(self._numbers), poll))

    def _someone_is_due(self) -> bool:
        while self._due and self._due[0][2].answer.done():
            heappop(self._due)
        return bool(self._due) and self._due[0][0] <= self._moves

    def _tell_batch(self) -> None:
        """Answer some of the calls that are due; those whose sessions have not moved are held on."""
        told = 0
        for _ in range(2 * BATCH):
            if told == BATCH or not self._someone_is_due():
                break
            poll = heappop(self._due)[2]
            if self._position(poll.session_id) == poll.position:  # who left was behind it
                self._expect(poll)
            else:
                told += 1
                _answer(poll)
        loop = asyncio.get_running_loop()
        if self._someone_is_due():
            self._telling = loop.call_later(BATCH_PAUSE, self._tell_batch)
        else:
            self._telling = loop.call_later(POSITION_PACE, self._begin_round)

    def _begin_round(self) -> None:
        self._telling = None
        self.moved(0)


def _answer(poll: _Poll) -> None:
    if not poll.answer.done():
        poll.answer.set_result(None)
