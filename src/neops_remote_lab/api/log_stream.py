"""Serves a lab's log to many readers: as text, or as server-sent events while it grows.

All streams of a log share one file reader and one window of events in memory. A stream stores only its position in that
window, so a slow reader costs no more than a connection. A stream that falls behind the window ends.
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
"""Bytes read before the first byte that is sent, to find out whether it is inside a traceback."""
LOOK_EVERY: Final = 0.25
"""Seconds between two checks of a growing log."""
KEEP_ALIVE_EVERY: Final = 15.0
"""Seconds without output after which a comment is sent, so that proxies do not close the connection."""
FELL_BEHIND: Final = "this reader is too slow: lines were printed that it has not taken. Open the stream again"


class LogReader:
    """Reads a log piece by piece, starting at most `most` bytes before its end. Blocks."""

    def __init__(self, log: Path, most: int) -> None:
        self._log = log
        self._most = most
        self._position: int | None = None
        self._lines = Lines()

    def read(self, until: int | None = None, *, last: bool = False) -> tuple[int, list[list[str]]]:
        """Read the next piece. Returns the number of bytes, and the completed lines as lists of visible parts.

        Args:
            until: position in the file at which to stop.
            last: no more output follows, so an unfinished line counts as complete.
        """
        data = b""
        with suppress(FileNotFoundError), self._log.open("rb") as file:
            if self._position is None or file.seek(0, 2) < self._position:  # first read, or the log was truncated
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
                # Skip the line that begins before `start`, or more than `most` bytes would be shown.
                self._lines.feed(file.readline(LOOK_BACK_BYTES))
                self._position = file.tell()


class LogFeed:
    """The events of one log, shared by its readers."""

    def __init__(self, log: Path, backlog: int, run_blocking: RunBlocking, lives: Callable[[], bool]) -> None:
        """`backlog` is the size of the window in bytes; `lives` says whether more output may follow."""
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
        """Server-sent events: a `message` for each past and future line, and `end` when the lab has ended."""
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
        """Wait for more output; False if there was none for a while. The first waiting stream starts a shared read."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        reading = self._reading
        await asyncio.wait([reading], timeout=KEEP_ALIVE_EVERY)
        if reading.done():
            self._reading = None if self._reading is reading else self._reading
            reading.result()
        return reading.done()

    async def _read(self) -> None:
        """Read until there is a new batch, the log has ended, or there are no readers."""
        while self.readers:
            lives = self._lives()  # before reading, so that output up to the end is not missed
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
    """All readers of logs, with limits on their number."""

    def __init__(self, settings: HttpSettings, run_blocking: RunBlocking) -> None:
        self._settings = settings
        self._run_blocking = run_blocking
        self._feeds: dict[Path, LogFeed] = {}
        self._readers: Counter[str] = Counter()

    @contextmanager
    def place(self, session_id: str) -> Iterator[None]:
        """Count as a reader inside the context. Raises HTTPException 429 or 503 if there are too many."""
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
        """The output so far as text, cut at its beginning if it is too long."""
        reader = LogReader(log, self._settings.log_backlog_bytes)
        size = await self._run_blocking(_size, log)
        count = 1
        while count:
            count, lines = await self._run_blocking(_read_until, reader, size)
            yield "".join(f"{part}\n" for line in lines for part in line).encode()

    async def events(self, log: Path, lives: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """Past and future output as server-sent events."""
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
    """A streaming response inside a context manager, which is exited even if the client disconnects early."""

    def __init__(self, content: AsyncGenerator[bytes], holds: AbstractContextManager[Any], **more: Any) -> None:
        super().__init__(content, **more)
        self._content = content
        self._holds = holds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. An HTTPException raised on entering `holds` is sent instead."""
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
