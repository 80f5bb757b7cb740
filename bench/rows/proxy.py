"""A status call that is passed on to the server of another host."""

from tests.hops import active_elsewhere

from bench import load
from bench.load import Connection, request
from bench.measure import Row, Sample, Target
from bench.servers import Bench, joined

DIRECT = "direct"
CALLS = 200
"""Number of calls before the other way is measured."""


def measure(bench: Bench) -> list[Row]:
    """Compare a call that is passed on with a direct call."""
    turns = bench.choose(10, 50)
    with bench.ours() as owner, bench.ours() as front:
        session = joined(owner)
        asked = request("GET", "/lab", session)

        async def in_turn() -> list[list[float]]:
            connections = [await Connection(server.port).open() for server in (front, owner)]
            for connection in connections:  # not measured: the first call imports libraries
                await load.repeat(connection, asked, 200, CALLS)
            took: list[list[float]] = [[] for _ in connections]
            for turn in range(turns):
                for index in (0, 1) if turn % 2 == 0 else (1, 0):
                    took[index] += await load.repeat(connections[index], asked, 200, CALLS)
            for connection in connections:
                connection.close()
            return took

        with active_elsewhere(front, session, owner.url):
            proxied, direct = (Sample(took).scaled(1000) for took in load.run(in_turn, 100))
    case = "GET /lab of another host"
    return [Row("proxy", case, "ms", proxied, DIRECT, direct, Target(ratio=3, of="p99"))]
