"""Serves a lab's log to many readers: as text, or as server-sent events while it grows.

All streams of a log share one file reader and one window of events in memory. A stream stores only its position in that
window, so a slow reader costs no more than a connection. A stream that falls behind the window ends.
"""

import asyncio
import io
import re
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from starlette import status
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from neops_remote_lab.api.settings import HttpSettings
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.netlab.output import PIECE_BYTES, Lines
from neops_remote_lab.netlab.workspace import LOG_NAME

LOOK_BACK_BYTES: Final = 64 * 1024
"""Bytes read before the first byte that is sent, to find out whether it is inside a traceback."""
LOOK_EVERY: Final = 0.25
"""Seconds between two checks of a growing log."""
KEEP_ALIVE_EVERY: Final = 15.0
"""Seconds without output after which a comment is sent, so that proxies do not close the connection."""
FELL_BEHIND: Final = "this reader is too slow: lines were printed that it has not taken. Open the stream again"
SHUTTING_DOWN: Final = "the server is shutting down. Open the stream again"
Ending = Callable[[], str | None]
"""Returns None while more output may follow; otherwise why the stream ends, or an empty text if the lab has ended."""
_EVENT_ID: Final = re.compile(r"(?P<log>[\w.-]+)-(?P<position>\d{1,18})", re.ASCII)


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        position: where it begins in the file. It identifies the line.
        parts: its visible parts.
    """

    position: int
    parts: list[str]


class LogReader:
    """Reads a log piece by piece, starting at most `most` bytes before its end. Blocks."""

    def __init__(self, log: Path, most: int) -> None:
        self._log = log
        self._most = most
        self._position: int | None = None
        self._line_position = 0
        self._lines = Lines()

    def read(self, until: int | None = None, *, last: bool = False) -> tuple[int, list[Line]]:
        """Read the next piece. Returns the number of bytes, and the completed lines.

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
        return len(data), list(self._completed(data, last=last and not data))

    def _completed(self, data: bytes, *, last: bool) -> Iterator[Line]:
        position = (self._position or 0) - len(data)
        for piece in io.BytesIO(data) if data else [b""]:
            for parts in self._lines.feed(piece, last=last):
                yield Line(self._line_position, parts)
            position += len(piece)
            if piece.endswith(b"\n"):
                self._line_position = position

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
        self._line_position = self._position


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive events of a log.

    Attributes:
        events: the events as they are sent.
        positions: for each event, the position of its line in the log.
    """

    events: bytes
    positions: "array[int]"  # subscriptable from Python 3.12 on

    def after(self, position: int, log: str) -> bytes:
        """The events of later lines, with ids."""
        texts = self.events.split(b"\n\n")
        found = ((at, text) for at, text in zip(self.positions, texts, strict=False) if at > position)
        return b"".join(b"id: %s-%d\n%s\n\n" % (log.encode(), at, text) for at, text in found)


class LogFeed:
    """The events of one log, shared by its readers."""

    def __init__(self, log: Path, backlog: int, run_blocking: RunBlocking, ending: Ending) -> None:
        """`backlog` is the size of the window in bytes."""
        self._reader = LogReader(log, backlog)
        self._backlog = backlog
        self._run_blocking = run_blocking
        self._ending = ending
        self._batches: dict[int, Batch] = {}
        self._first = self._next = self._size = 0
        self._reading: asyncio.Task[None] | None = None
        self._ended: str | None = None
        self.readers = 0

    async def events(self, after: int | None, log: str) -> AsyncGenerator[bytes]:
        """Server-sent events: a `message` for each past and future line, and `end` when the lab has ended.

        Args:
            after: send only lines that begin after this position, and send ids; None: send all lines without ids.
            log: the name of the log in ids.
        """
        place = self._first
        while place >= self._first:
            if place < self._next:
                batch = self._batches[place]
                place += 1
                if events := batch.events if after is None else batch.after(after, log):
                    yield events
            elif self._ended is not None:
                yield _end(self._ended)
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
            ending = self._ending()  # before reading, so that output up to the end is not missed
            count, batch = await self._run_blocking(self._read_events, ending is not None)
            if batch:
                self._append(batch)
            if not count:
                self._ended = ending
            if batch or self._ended is not None:
                return
            if not count:
                await asyncio.sleep(LOOK_EVERY)

    def _read_events(self, last: bool) -> tuple[int, Batch | None]:
        count, lines = self._reader.read(last=last)
        text = "".join("".join(f"data: {part}\n" for part in line.parts) + "\n" for line in lines)
        return count, Batch(text.encode(), array("q", [line.position for line in lines])) if lines else None

    def _append(self, batch: Batch) -> None:
        self._batches[self._next] = batch
        self._next += 1
        self._size += len(batch.events)
        while self._size > self._backlog and self._first < self._next - 1:
            self._size -= len(self._batches.pop(self._first).events)
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
            yield "".join(f"{part}\n" for line in lines for part in line.parts).encode()

    async def events(self, log: Path, ending: Ending, last_id: str | None = None) -> AsyncGenerator[bytes]:
        """Past and future output as server-sent events.

        Args:
            log: the log.
            ending: whether and why the stream ends.
            last_id: the id of the last event that the client has received; of another log or empty: it has received
                none. Without it, the events have no ids.
        """
        name = log.parent.name if log.name == LOG_NAME else log.stem  # the id of the lab, wherever its log is kept
        after = None if last_id is None else _position_in(name, last_id)
        feed = self._feeds.get(log)
        if feed is None:
            feed = LogFeed(log, self._settings.log_backlog_bytes, self._run_blocking, ending)
            self._feeds[log] = feed
        feed.readers += 1
        try:
            async for events in feed.events(after, name):
                yield events
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


def _position_in(log: str, last_id: str) -> int:
    """The position in an event's id; -1 if the event is not from this log."""
    found = _EVENT_ID.fullmatch(last_id)
    return int(found["position"]) if found and found["log"] == log else -1


def _read_until(reader: LogReader, position: int) -> tuple[int, list[Line]]:
    return reader.read(position, last=True)


def _end(why: str) -> bytes:
    return f"event: end\ndata: {why}".rstrip().encode() + b"\n\n"
