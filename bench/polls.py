"""Clients with long polls: the next one of a queue, or all that wait in it."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil
from tests.server import LabServer

from bench import load
from bench.load import Answer, Connection, request
from bench.measure import BenchError, require
from bench.servers import process_of

BATCH: Final = 50
IDLE: Final = 10.0
"""Percent of a core below which a server has processed all requests."""
WAIT: Final = 60
"""The `wait` of each long poll, in seconds. It is longer than any measurement."""


class Head:
    """Hand-overs at the head of a server's queue. Each one adds a session at its end, so the length is constant."""

    def __init__(self, server: LabServer, ids: list[str]) -> None:
        self.server = server
        self.ids = ids
        self._next = Connection(server.port)
        self._active = Connection(server.port)

    async def hand_over(self) -> float:
        """Seconds from the end of the active session to the answer that the next one waits for."""
        active, following = self.ids.pop(0), self.ids[0]
        poll = load.in_background(self._next.call(request("GET", f"/session/{following}?wait=30", following)))
        await load.pause(0.02)
        began = time.perf_counter()
        ended = load.in_background(self._active.call(request("DELETE", f"/session/{active}", active)))
        place = (await poll).expect(200).json()
        took = time.perf_counter() - began
        (await ended).expect(204)
        require(place["status"] == "active", f"the next session was not made active: {place}")
        answer = await self._active.call(request("POST", "/session"))
        self.ids.append(answer.expect(201).json()["session_id"])
        return took


async def hand_over_in_turn(heads: Sequence[Head], turns: int) -> list[list[float]]:
    """The seconds of hand-overs by queue."""
    took: list[list[float]] = [[] for _ in heads]
    for _ in range(turns):
        for index, head in enumerate(heads):
            took[index].append(await head.hand_over())
    return took


class WaitingClients:
    """The clients of one server's waiting sessions, each with an open long poll.

    Attributes:
        memory: bytes of the server per long poll.
    """

    def __init__(self, server: LabServer, ids: list[str]) -> None:
        self.server = server
        self.ids = ids
        self.process = psutil.Process()
        self.memory = 0.0
        self._polls: dict[str, asyncio.Task[Answer]] = {}
        self._connections: dict[str, Connection] = {}
        self._began = 0.0

    async def open(self) -> None:
        """Open a long poll for each waiting session, and measure the memory."""
        self.process = process_of(self.server)
        # The first call makes the server import and compile what every later one shares.
        (await Connection(self.server.port).call(request("GET", f"/session/{self.ids[-1]}?wait=0.1"))).expect(200)
        before = self.process.memory_info().rss
        self._began = time.monotonic()
        for start in range(1, len(self.ids), BATCH):
            waiting = self.ids[start : start + BATCH]
            for session, connection in zip(waiting, await load.connect(self.server.port, len(waiting)), strict=True):
                self._poll(session, connection)
        await self.wait_until_idle()
        self.memory = (self.process.memory_info().rss - before) / len(self._polls)

    async def wait_until_idle(self) -> None:
        """Wait until the server has processed all requests."""
        await load.pause()
        for _ in range(60):
            if await self.processor_share(0.3) < IDLE:
                return
        raise BenchError(f"the server does not become idle with {len(self._polls)} long polls")

    def _poll(self, session: str, connection: Connection) -> None:
        self._connections[session] = connection
        self._polls[session] = load.in_background(self._until_active(session, connection))

    async def _until_active(self, session: str, connection: Connection) -> Answer:
        """Poll until the session is active. Returns the last answer; each earlier one had a new position."""
        position = None
        while True:
            sent = request("GET", f"/session/{session}?wait={WAIT}", session)
            answer = (await connection.call(sent)).expect(200)
            place = answer.json()
            if place["status"] == "active":
                return answer
            require(place["position"] != position, f"a long poll was answered without a change: {place}")
            position = place["position"]

    async def hand_over(self) -> float:
        """Seconds from the end of the active session to the next one's answer; a new session joins at the end."""
        active, following = self.ids.pop(0), self.ids[0]
        other = Connection(self.server.port)
        await other.open()
        began = time.perf_counter()
        ended = load.in_background(other.call(request("DELETE", f"/session/{active}", active)))
        place = (await self._polls.pop(following)).expect(200).json()
        took = time.perf_counter() - began
        (await ended).expect(204)
        require(place["status"] == "active", f"the next session was not made active: {place}")
        joined = (await other.call(request("POST", "/session"))).expect(201).json()["session_id"]
        other.close()
        self.ids.append(joined)
        self._poll(joined, self._connections.pop(following))
        return took

    async def processor_share(self, seconds: float) -> float:
        """The processor time that the server uses during so many seconds, in percent of a core."""
        before, began = processor_seconds(self.process), time.monotonic()
        await asyncio.sleep(seconds)
        return 100 * (processor_seconds(self.process) - before) / (time.monotonic() - began)

    async def close(self) -> None:
        """Check that all long polls are still open, and close them."""
        early = [session for session, poll in self._polls.items() if poll.done()]
        require(not early, f"{len(early)} long polls were answered too early")
        require(time.monotonic() - self._began < WAIT, "the measurement took longer than a long poll")
        for connection in self._connections.values():
            connection.close()
        await asyncio.gather(*self._polls.values(), return_exceptions=True)


def processor_seconds(process: psutil.Process) -> float:
    """The processor time of a process; from the scheduler if possible, because other counts have steps of 10 ms."""
    counts = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    if nanoseconds := [int(count.read_text().split()[0]) for count in counts]:
        return sum(nanoseconds) / 1e9
    return float(sum(process.cpu_times()[:2]))
