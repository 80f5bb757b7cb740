"""What a long queue costs: status of its last session, and the hand-over at its head."""

import time

from tests.server import LabServer

from bench import load
from bench.load import Connection, request
from bench.measure import Row, Sample, Target, require
from bench.servers import NEVER, Bench, fill

LENGTHS = (1000, 10_000, 50_000)
TARGET = Target(ratio=3, of="p99")


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


def measure(bench: Bench) -> list[Row]:
    """The rows: each length on a server of its own, next to one with a single waiting session."""
    return [row for waiting in LENGTHS for row in _length(bench, waiting)]


def _length(bench: Bench, waiting: int) -> list[Row]:
    servers = [bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER) for _ in range(2)]
    heads = [Head(server, fill(server.database, count)) for server, count in zip(servers, (1, waiting), strict=True)]
    with bench.several(servers):
        status, hand_over = load.run(lambda: _in_turn(bench, heads), 120)
    return [
        Row(
            "long queue",
            f"{case}, {waiting} waiting",
            "ms",
            Sample(found[1]).scaled(1000),
            "1 waiting",
            Sample(found[0]).scaled(1000),
            TARGET,
            chart="long queue",
            line=case,
            x=waiting,
        )
        for case, found in (("status of the last", status), ("hand-over", hand_over))
    ]


async def _in_turn(bench: Bench, heads: list[Head]) -> tuple[list[list[float]], list[list[float]]]:
    status: list[list[float]] = [[], []]
    hand_over: list[list[float]] = [[], []]
    for _ in range(bench.choose(6, 10)):
        for index, head in enumerate(heads):
            last = head.ids[-1]
            [connection] = await load.connect(head.server.port, 1)
            asked = request("GET", f"/session/{last}", last)
            status[index] += await load.repeat(connection, asked, 200, bench.choose(100, 500))
            connection.close()
    for _ in range(bench.choose(50, 200)):
        for index, head in enumerate(heads):
            hand_over[index].append(await head.hand_over())
    return status, hand_over
