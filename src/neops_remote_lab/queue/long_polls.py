"""Long polls: calls that wait until their session becomes active or ends, or its position in the queue changes.

Answering many calls in one go would stall the event loop. The first few are answered at once, the others in batches,
between which the loop does other work. A change of position wakes only the first sessions of the queue, so its cost
does not depend on the length of the queue. Sessions further back see their new position when their call times out.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from neops_remote_lab.queue.session_cache import SessionCache

BATCH: Final = 16
"""Number of calls answered in one go."""
BATCH_PAUSE: Final = 0.002
"""Seconds between two batches."""
POSITION_DELAY: Final = 0.02
"""Seconds until a change of position is answered, so that the session that became active is answered first."""
POSITION_PACE: Final = 0.2
"""Seconds between two rounds of such answers, so that many sessions that end together cause one round."""
NEAR: Final = 20
"""Sessions up to this position are notified of each change of their position."""


@dataclass(eq=False, slots=True)
class _Poll:
    position: int | None
    answer: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LongPolls:
    """The waiting calls of all sessions."""

    def __init__(self, cache: SessionCache) -> None:
        self._cache = cache
        self._held: dict[str, set[_Poll]] = {}
        self._ready: deque[_Poll] = deque()
        self._answering: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._next_round = 0.0

    async def hold(self, session_id: str, position: int | None, seconds: float) -> None:
        """Wait until `answer` is called for the session, or until `seconds` have passed.

        Args:
            position: also return when the session's position differs from this one; None ignores the position.
            seconds: may be infinite.
        """
        poll = _Poll(position)
        self._held.setdefault(session_id, set()).add(poll)
        try:
            await asyncio.wait([poll.answer], timeout=None if seconds == math.inf else seconds)
        finally:
            poll.answer.cancel()
            polls = self._held[session_id]
            polls.discard(poll)
            if not polls:
                del self._held[session_id]

    def answer(self, session_ids: Iterable[str]) -> None:
        """Answer the calls of these sessions: the first ones at once, the others in batches."""
        at_once = BATCH
        for session_id in session_ids:
            for poll in self._held.get(session_id, ()):
                if at_once:
                    at_once -= not poll.answer.done()
                    _answer(poll)
                else:
                    self._ready.append(poll)
        self._answer_soon()

    def answer_all(self) -> None:
        """Answer every call."""
        self.answer(list(self._held))

    def moved(self) -> None:
        """Notify sessions near the head of the queue, soon, that their position may have changed."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            delay = max(POSITION_DELAY, self._next_round - loop.time())
            self._telling = loop.call_later(delay, self._tell)

    def _tell(self) -> None:
        """Answer the calls of the first sessions whose position has changed."""
        self._telling = None
        self._next_round = asyncio.get_running_loop().time() + POSITION_PACE
        for position, session_id in enumerate(self._cache.nearest(NEAR), 1):
            polls = self._held.get(session_id, ())
            self._ready += [poll for poll in polls if poll.position not in (None, position)]
        self._answer_soon()

    def _answer_soon(self) -> None:
        if self._ready and self._answering is None:
            self._answering = asyncio.get_running_loop().call_later(BATCH_PAUSE, self._answer_batch)

    def _answer_batch(self) -> None:
        self._answering = None
        for _ in range(min(BATCH, len(self._ready))):
            _answer(self._ready.popleft())
        self._answer_soon()


def _answer(poll: _Poll) -> None:
    if not poll.answer.done():
        poll.answer.set_result(None)
