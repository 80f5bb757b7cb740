"""Calls with a long queue: the status of its last session, and the hand-over at its head."""

from bench import load
from bench.load import request
from bench.measure import Row, Sample, Target
from bench.polls import Head, hand_over_in_turn
from bench.servers import NEVER, Bench, fill

LENGTHS = (1000, 10_000, 50_000)
TARGET = Target(ratio=3, of="p99")


def measure(bench: Bench) -> list[Row]:
    """Measure each length on a new server, compared with a server with one waiting session."""
    return [row for waiting in LENGTHS for row in _length(bench, waiting)]


def _length(bench: Bench, waiting: int) -> list[Row]:
    servers = [bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER) for _ in range(2)]
    heads = [
        Head(server, fill(server.database_url, count)) for server, count in zip(servers, (1, waiting), strict=True)
    ]
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
    for _ in range(bench.choose(6, 10)):
        for index, head in enumerate(heads):
            last = head.ids[-1]
            [connection] = await load.connect(head.server.port, 1)
            asked = request("GET", f"/session/{last}", last)
            status[index] += await load.repeat(connection, asked, 200, bench.choose(100, 500))
            connection.close()
    return status, await hand_over_in_turn(heads, bench.choose(50, 200))
