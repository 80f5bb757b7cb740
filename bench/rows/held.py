"""Thousands of long polls: memory, time until the next session is active, and processor time while idle."""

import asyncio
import time
from pathlib import Path

import psutil
from tests.server import LabServer

from bench import load
from bench.load import Answer, Connection, request
from bench.measure import BenchError, Row, Sample, Target, require
from bench.servers import NEVER, Bench, fill, process_of

FEW, MANY = 10, (1000, 5000)
BATCH = 50
QUIET = 10.0
"""Percent of a core below which a server has taken in what was sent."""
HOLD = 60
"""Seconds for which the server is asked to hold an answer; everything is over before that."""


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
        before, began = _processor_seconds(self.process), time.monotonic()
        await asyncio.sleep(seconds)
        return 100 * (_processor_seconds(self.process) - before) / (time.monotonic() - began)

    async def disperse(self) -> None:
        """Check that all long polls were open to the end, and close them."""
        early = [session for session, held in self._held.items() if held.done()]
        require(not early, f"{len(early)} calls were over before their turn")
        require(time.monotonic() - self._began < HOLD, "the calls could not be held for as long as was measured")
        for connection in self._connections.values():
            connection.close()
        await asyncio.gather(*self._held.values(), return_exceptions=True)


def _processor_seconds(process: psutil.Process) -> float:
    """The processor time of a process; from the scheduler if possible, because other counts have steps of 10 ms."""
    counts = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    if nanoseconds := [int(count.read_text().split()[0]) for count in counts]:
        return sum(nanoseconds) / 1e9
    return float(sum(process.cpu_times()[:2]))


def measure(bench: Bench) -> list[Row]:
    """The rows."""
    return [row for clients in MANY for row in _crowd(bench, clients)]


def _crowd(bench: Bench, clients: int) -> list[Row]:
    # When each of them was last seen is written before the idle time begins, not in the middle of it.
    servers = [bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER, last_seen_write="2") for _ in range(2)]
    crowds = [
        Crowd(server, fill(server.database, count)) for server, count in zip(servers, (FEW, clients), strict=True)
    ]
    with bench.several(servers):
        hand_over, cpu = load.run(lambda: _in_turn(bench, crowds), 110)
    few, many = crowds
    return [
        _row("hand-over", clients, "ms", ours=hand_over[1], few=hand_over[0], target=Target(ratio=3)),
        _row("idle CPU", clients, "% of a core", ours=cpu[1], few=cpu[0], target=Target(ceiling=1)),
        _row("memory a client", clients, "kB", ours=[many.memory / 1000], few=[few.memory / 1000], target=Target()),
    ]


def _row(what: str, clients: int, unit: str, *, ours: list[float], few: list[float], target: Target) -> Row:
    return Row(
        "held calls",
        f"{what}, {clients} held",
        unit,
        Sample(ours),
        f"{FEW} held",
        Sample(few),
        target,
        chart="held calls",
        line=f"{what}, {unit}",
        x=clients,
    )


async def _in_turn(bench: Bench, crowds: list[Crowd]) -> tuple[list[list[float]], list[list[float]]]:
    for crowd in crowds:
        await crowd.gather()
    hand_over: list[list[float]] = [[], []]
    cpu: list[list[float]] = [[], []]
    for _ in range(bench.choose(60, 200)):
        for index, crowd in enumerate(crowds):
            hand_over[index].append(1000 * await crowd.hand_over())
    for crowd in crowds:
        await crowd.quiet()  # the last hand-overs have moved others up, who are told so and ask again
    for _ in range(bench.choose(1, 3)):
        # Both at once: they are processes of their own, and neither does anything.
        found = await asyncio.gather(*(crowd.idle(bench.choose(3.0, 5.0)) for crowd in crowds))
        for index, percent in enumerate(found):
            cpu[index].append(percent)
    for crowd in crowds:
        await crowd.disperse()
    return hand_over, cpu
