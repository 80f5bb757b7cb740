"""A lab's log for many readers at a time: as a text, or as server-sent events while it grows.

All streams of one log share one reader of its file and one window of events in memory. A stream keeps nothing but its
place in that window, so a reader that does not read costs no more than a connection; when the window has moved on
without it, its stream ends.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from starlette import status
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from neops_remote_lab.api.settings import HttpSettings
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.netlab.output import PIECE_BYTES, Lines

LOOK_BACK_BYTES: Final = 64 * 1024
"""What is read before the first byte that is shown, to see whether that lies within a traceback."""
LOOK_EVERY: Final = 0.25
"""Seconds between two looks at a log that grows."""
KEEP_ALIVE_EVERY: Final = 15.0
"""Seconds without a line after which a comment keeps proxies from closing the connection."""
FELL_BEHIND: Final = "this reader is too slow: lines were printed that it has not taken. Open the stream again"


class LogReader:
    """Reads a log piece by piece, from at most so many bytes before its end on. Blocks: not for the event loop."""

    def __init__(self, log: Path, most: int) -> None:
        self._log = log
        self._most = most
        self._position: int | None = None
        self._lines = Lines()

    def read(self, until: int | None = None, *, last: bool = False) -> tuple[int, list[list[str]]]:
        """How many bytes were read, and the lines that ended in them, each as its parts.

        Args:
            until: position in the file where to stop.
            last: nothing follows, so a line without an end is one too.
        """
        data = b""
        with suppress(FileNotFoundError), self._log.open("rb") as file:
            if self._position is None or file.seek(0, 2) < self._position:  # at the start, or the log began anew
                self._begin(file.seek(0, 2))
            file.seek(self._position or 0)
            data = file.read(PIECE_BYTES if until is None else max(0, min(PIECE_BYTES, until - file.tell())))
            self._position = file.tell()
        return len(data), self._lines.feed(data, last=last and not data)

    def _begin(self, size: int) -> None:
        self._position = start = max(0, size - self._most)
        before = max(0, start - LOOK_BACK_BYTES)
        self._lines = Lines(partial=before > 0)
        if start:
            with self._log.open("rb") as file:
                file.seek(before)
                self._lines.feed(file.read(start - 1 - before))
                # The line that began before `start` would be shown whole, and with it more than was asked for.
                self._lines.feed(file.readline(LOOK_BACK_BYTES))
                self._position = file.tell()


class LogFeed:
    """The events of one log, and the readers that share them."""

    def __init__(self, log: Path, backlog: int, run_blocking: RunBlocking, lives: Callable[[], bool]) -> None:
        """`backlog`: how many bytes of events are kept; `lives`: whether the lab may print more."""
        self._reader = LogReader(log, backlog)
        self._backlog = backlog
        self._run_blocking = run_blocking
        self._lives = lives
        self._batches: dict[int, bytes] = {}
        self._first = self._next = self._size = 0
        self._reading: asyncio.Task[None] | None = None
        self._ended = False
        self.readers = 0

    async def events(self) -> AsyncGenerator[bytes]:
        """A `message` for each line, printed before or from now on, then `end` when the lab is gone."""
        place = self._first
        while place >= self._first:
            if place < self._next:
                yield self._batches[place]
                place += 1
            elif self._ended:
                yield _end("")
                return
            elif not await self._grows():
                yield b": still here\n\n"
        yield _end(FELL_BEHIND)

    async def _grows(self) -> bool:
        """Wait for more; False when none has come for a while. Whoever waits first reads for all."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        reading = self._reading
        await asyncio.wait([reading], timeout=KEEP_ALIVE_EVERY)
        if reading.done():
            self._reading = None if self._reading is reading else self._reading
            reading.result()
        return reading.done()

    async def _read(self) -> None:
        """Return when there is a batch more, or when the log has ended, or nobody reads any more."""
        while self.readers:
            lives = self._lives()  # asked before reading: what was printed up to the end is still shown
            count, events = await self._run_blocking(self._read_events, not lives)
            if events:
                self._append(events)
            if not count and not lives:
                self._ended = True
            if events or self._ended:
                return
            if not count:
                await asyncio.sleep(LOOK_EVERY)

    def _read_events(self, last: bool) -> tuple[int, bytes]:
        count, lines = self._reader.read(last=last)
        return count, "".join("".join(f"data: {part}\n" for part in line) + "\n" for line in lines).encode()

    def _append(self, events: bytes) -> None:
        self._batches[self._next] = events
        self._next += 1
        self._size += len(events)
        while self._size > self._backlog and self._first < self._next - 1:
            self._size -= len(self._batches.pop(self._first))
            self._first += 1


class LogStreams:
    """The readers of logs: how many there may be, and what they share."""

    def __init__(self, settings: HttpSettings, run_blocking: RunBlocking) -> None:
        self._settings = settings
        self._run_blocking = run_blocking
        self._feeds: dict[Path, LogFeed] = {}
        self._readers: Counter[str] = Counter()

    @contextmanager
    def place(self, session_id: str) -> Iterator[None]:
        """Be one of the readers. Raises HTTPException 429 or 503 where there are too many."""
        settings, later = self._settings, {"Retry-After": str(self._settings.retry_after)}
        if self._readers[session_id] >= settings.max_session_log_readers:
            detail = f"the session reads its log {settings.max_session_log_readers} times already"
            raise HTTPException(status.HTTP_429_TOO_MANY_REQUESTS, detail=detail, headers=later)
        if self._readers.total() >= settings.max_log_readers:
            detail = f"logs are read {settings.max_log_readers} times already: retry later"
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail=detail, headers=later)
        self._readers[session_id] += 1
        try:
            yield
        finally:
            self._readers[session_id] -= 1
            self._readers += Counter()  # drops those at zero

    async def text(self, log: Path) -> AsyncGenerator[bytes]:
        """What netlab has printed so far, or the end of it."""
        reader = LogReader(log, self._settings.log_backlog_bytes)
        size = await self._run_blocking(_size, log)
        count = 1
        while count:
            count, lines = await self._run_blocking(_read_until, reader, size)
            yield "".join(f"{part}\n" for line in lines for part in line).encode()

    async def events(self, log: Path, lives: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """What netlab has printed and prints, as server-sent events."""
        feed = self._feeds.get(log)
        if feed is None:
            feed = LogFeed(log, self._settings.log_backlog_bytes, self._run_blocking, lives)
            self._feeds[log] = feed
        feed.readers += 1
        try:
            async for batch in feed.events():
                yield batch
        finally:
            feed.readers -= 1
            if not feed.readers:
                del self._feeds[log]


class HeldResponse(StreamingResponse):
    """A stream that holds something for as long as it is sent, also when its client leaves before it begins."""

    def __init__(self, content: AsyncGenerator[bytes], holds: AbstractContextManager[Any], **more: Any) -> None:
        super().__init__(content, **more)
        self._content = content
        self._holds = holds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; what entering `holds` raises is the answer instead."""
        with self._holds:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._content.aclose()


def _size(log: Path) -> int:
    with suppress(FileNotFoundError):
        return log.stat().st_size
    return 0


def _read_until(reader: LogReader, position: int) -> tuple[int, list[list[str]]]:
    return reader.read(position, last=True)


def _end(why: str) -> bytes:
    return f"event: end\ndata: {why}".rstrip().encode() + b"\n\n"
