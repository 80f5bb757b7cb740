"""Clients in long polls: the one at the head of a queue, and all those that wait in it."""

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
QUIET: Final = 10.0
"""Percent of a core below which a server has taken in what was sent."""
HOLD: Final = 60
"""Seconds for which the server is asked to hold an answer; everything is over before that."""


class Head:
    """The head of a server's queue, which moves on with every hand-over."""

    def __init__(self, server: LabServer, ids: list[str]) -> None:
        self.server = server
        self.ids = ids
        self._next = Connection(server.port)
        self._active = Connection(server.port)

    async def hand_over(self) -> float:
        """Seconds from the end of the active session to the answer that the next one waits for."""
        active, following = self.ids.pop(0), self.ids[0]
        held = load.in_background(self._next.call(request("GET", f"/session/{following}?wait=30", following)))
        await load.settle(0.02)
        began = time.perf_counter()
        ended = load.in_background(self._active.call(request("DELETE", f"/session/{active}", active)))
        place = (await held).expect(200).json()
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


class Crowd:
    """The waiting sessions of one server, each with an open long poll."""

    def __init__(self, server: LabServer, ids: list[str]) -> None:
        self.server = server
        self.ids = ids
        self.process = psutil.Process()
        self.memory = 0.0
        self._held: dict[str, asyncio.Task[Answer]] = {}
        self._connections: dict[str, Connection] = {}
        self._began = 0.0

    async def gather(self) -> None:
        """Open a long poll for each waiting session. Returns the memory per session."""
        self.process = process_of(self.server)
        # The first call makes the server import and compile what every later one shares.
        (await Connection(self.server.port).call(request("GET", f"/session/{self.ids[-1]}?wait=0.1"))).expect(200)
        before = self.process.memory_info().rss
        self._began = time.monotonic()
        for start in range(1, len(self.ids), BATCH):
            waiting = self.ids[start : start + BATCH]
            for session, connection in zip(waiting, await load.connect(self.server.port, len(waiting)), strict=True):
                self.hold(session, connection)
        await self.quiet()
        self.memory = (self.process.memory_info().rss - before) / len(self._held)

    async def quiet(self) -> None:
        """Wait until the server has read everything that was sent."""
        await load.settle()
        for _ in range(60):
            if await self.idle(0.3) < QUIET:
                return
        raise BenchError(f"the server does not come to rest with {len(self._held)} calls held")

    def hold(self, session: str, connection: Connection) -> None:
        self._connections[session] = connection
        self._held[session] = load.in_background(self._until_active(session, connection))

    async def _until_active(self, session: str, connection: Connection) -> Answer:
        """The answer that the session is active; until then one for each change of its position."""
        position = None
        while True:
            sent = request("GET", f"/session/{session}?wait={HOLD}", session)
            answer = (await connection.call(sent)).expect(200)
            place = answer.json()
            if place["status"] == "active":
                return answer
            require(place["position"] != position, f"a call was answered although nothing had changed: {place}")
            position = place["position"]

    async def hand_over(self) -> float:
        """Seconds from the end of the active session to the next one's answer; a new session joins at the end."""
        active, following = self.ids.pop(0), self.ids[0]
        other = Connection(self.server.port)
        await other.open()
        began = time.perf_counter()
        ended = load.in_background(other.call(request("DELETE", f"/session/{active}", active)))
        place = (await self._held.pop(following)).expect(200).json()
        took = time.perf_counter() - began
        (await ended).expect(204)
        require(place["status"] == "active", f"the next session was not made active: {place}")
        joined = (await other.call(request("POST", "/session"))).expect(201).json()["session_id"]
        other.close()
        self.ids.append(joined)
        self.hold(joined, self._connections.pop(following))
        return took

    async def idle(self, seconds: float) -> float:
        """The processor time of the idle server, in percent of a core."""
        before, began = processor_seconds(self.process), time.monotonic()
        await asyncio.sleep(seconds)
        return 100 * (processor_seconds(self.process) - before) / (time.monotonic() - began)

    async def disperse(self) -> None:
        """Check that all long polls were open to the end, and close them."""
        early = [session for session, held in self._held.items() if held.done()]
        require(not early, f"{len(early)} calls were over before their turn")
        require(time.monotonic() - self._began < HOLD, "the calls could not be held for as long as was measured")
        for connection in self._connections.values():
            connection.close()
        await asyncio.gather(*self._held.values(), return_exceptions=True)


def processor_seconds(process: psutil.Process) -> float:
    """The processor time of a process; from the scheduler if possible, because other counts have steps of 10 ms."""
    counts = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    if nanoseconds := [int(count.read_text().split()[0]) for count in counts]:
        return sum(nanoseconds) / 1e9
    return float(sum(process.cpu_times()[:2]))
