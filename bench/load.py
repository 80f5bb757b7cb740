"""A load generator with little overhead: HTTP/1.1 with keep-alive, one request at a time per connection."""

import asyncio
import importlib
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from bench.measure import BenchError, require

T = TypeVar("T")

LONGEST_IDLE: Final = 2.0
"""Seconds of idleness after which a connection is opened again. Version 1.4.0 closes idle connections after 5."""
CALL_TIMEOUT: Final = 70.0
"""Maximum seconds until a response: a long poll takes at most 60."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes

    def expect(self, status: int) -> "Answer":
        """This answer; raises `BenchError` if it has another status."""
        if self.status != status:
            raise BenchError(f"the answer was {self.status} instead of {status}: {self.body[:500]!r}")
        return self

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str, path: str, session: str = "", body: bytes = b"", content_type: str = "application/json", **more: str
) -> bytes:
    """The bytes of a request; further headers as keywords, with `_` for `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"X-Session-ID: {session}"] if session else []
    lines += [f"Content-Type: {content_type}"] if body else []
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[Answer] | None = None
        self._used = 0.0

    async def open(self) -> "Connection":
        """Connect now instead of with the first call. An earlier connection is closed."""
        self.close()
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        self._used = time.monotonic()
        return self

    async def call(self, sent: bytes) -> Answer:
        """Send one request and wait for its answer."""
        if self._transport is None or self._transport.is_closing() or time.monotonic() - self._used > LONGEST_IDLE:
            await self.open()
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(sent)
        answer = await self._waiter
        self._used = time.monotonic()
        return answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._transport = None
        self._buffer.clear()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "abort")
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is not a subclass of asyncio.Transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        whole = end + 4 + _content_length(head)
        if len(self._buffer) < whole:
            return
        answer = Answer(int(head[9:12]), bytes(self._buffer[end + 4 : whole]))
        del self._buffer[:whole]
        waiter, self._waiter = self._waiter, None
        if waiter and not waiter.done():
            waiter.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(BenchError(f"the server closed the connection before it answered: {exc}"))


def _content_length(head: bytes) -> int:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        if head[9:12] == b"204":
            return 0
        raise BenchError(f"an answer without Content-Length: {head!r}")
    return int(head[start + 17 :].split(b"\r\n", 1)[0])


async def connect(port: int, count: int) -> list[Connection]:
    """Open `count` connections, a few at a time because the backlog of a server is limited."""
    connections = [Connection(port) for _ in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(one.open() for one in connections[start : start + 50]))
    return connections


async def repeat(connection: Connection, sent: bytes, status: int, count: int) -> list[float]:
    """Send a request `count` times, one after the other. Returns the seconds of each call."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        answer = await connection.call(sent)
        took.append(time.perf_counter() - began)
        answer.expect(status)
    return took


async def saturate(port: int, requests: Sequence[bytes], status: int, seconds: float) -> tuple[float, list[float]]:
    """Send each request repeatedly on a separate connection. Returns calls per second, and the seconds of each call."""
    connections = await connect(port, len(requests))
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def one(connection: Connection, sent: bytes) -> None:
        while (began := time.perf_counter()) < end:
            answer = await connection.call(sent)
            took.append(time.perf_counter() - began)
            answer.expect(status)

    began = time.perf_counter()
    await asyncio.gather(*(one(*pair) for pair in zip(connections, requests, strict=True)))
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.close()
    require(took, "no call was answered")
    return len(took) / elapsed, took


async def join(port: int, count: int, at_once: int) -> tuple[float, list[float], list[str]]:
    """Join `count` sessions. Returns joins per second, the seconds of each, and the ids in order of the responses."""
    connections = await connect(port, at_once)
    left = iter(range(count))
    took: list[float] = []
    joined: list[str] = []

    async def one(connection: Connection) -> None:
        for _ in left:
            began = time.perf_counter()
            answer = await connection.call(request("POST", "/session"))
            took.append(time.perf_counter() - began)
            joined.append(answer.expect(201).json()["session_id"])

    began = time.perf_counter()
    await asyncio.gather(*(one(connection) for connection in connections))
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.close()
    require(len(set(joined)) == count, "two joins gave the same session")
    return count / elapsed, took, joined


def in_background(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Send a request now, and await its response later."""
    return asyncio.create_task(call)


async def pause(seconds: float = 0.05) -> None:
    """Give the server time to receive what was sent."""
    await asyncio.sleep(seconds)


def run(work: Callable[[], Awaitable[T]], timeout: float) -> T:
    """Run a coroutine on the fastest available event loop; raises `BenchError` after `timeout` seconds."""

    async def bounded() -> T:
        return await asyncio.wait_for(work(), timeout)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(bounded())
    except TimeoutError as error:
        raise BenchError(f"it was not done within {timeout:g} s") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return factory
