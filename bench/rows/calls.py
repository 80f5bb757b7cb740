"""Heartbeats and status calls per second."""

from bench import load
from bench.measure import PEER, Row, Sample, Target
from bench.servers import Bench, Server

CONNECTIONS = (1, 10, 50)
WAITING = (1, 5000)


def measure(bench: Bench) -> list[Row]:
    """Measure each call on several numbers of connections, with few and many waiting sessions."""
    return [row for waiting in WAITING for row in _with_waiting(bench, waiting)]


def _with_waiting(bench: Bench, waiting: int) -> list[Row]:
    with bench.both() as (ours, theirs):
        servers: list[Server] = [ours, *([theirs] if theirs else [])]
        ids = [_fill(server, waiting) for server in servers]
        return [
            _compare(bench, servers, ids, call=call, connections=connections, waiting=waiting)
            for call in ("heartbeat", "status")
            for connections in CONNECTIONS
        ]


def _fill(server: Server, waiting: int) -> list[str]:
    """Join one active session and `waiting` others. Returns the ids of the waiting ones."""
    load.run(lambda: load.join(server.port, 1, 1), 30)
    return load.run(lambda: load.join(server.port, waiting, min(waiting, 20)), 100)[2]


def _compare(
    bench: Bench, servers: list[Server], ids: list[list[str]], *, call: str, connections: int, waiting: int
) -> Row:
    """Load the servers in turn. The samples are milliseconds per call, the ratio is that of calls per second."""
    seconds, slices = bench.choose((0.35, 2), (1.0, 3))
    rates: list[list[float]] = [[] for _ in servers]
    took: list[list[float]] = [[] for _ in servers]
    for turn in range(slices):
        for index in range(len(servers)) if turn % 2 == 0 else reversed(range(len(servers))):
            rate, latencies = _slice(servers[index], _requests(ids[index], call, connections), call, seconds)
            rates[index].append(rate)
            took[index] += latencies
    medians = [Sample(found).median for found in rates]
    samples = [Sample(found).scaled(1000) for found in took]
    return Row(
        "requests",
        f"{call}, {connections} conn., {waiting} waiting",
        "ms",
        samples[0],
        PEER,
        samples[1] if len(samples) > 1 else None,
        Target(ratio=1.0, sense="≥"),
        given_ratio=medians[0] / medians[1] if len(medians) > 1 else None,
        note=" against ".join(f"{rate:.0f}/s" for rate in medians) if len(medians) > 1 else bench.no_peer,
        chart=f"requests with {waiting} waiting",
        line=call,
        x=connections,
    )


def _slice(server: Server, requests: list[bytes], call: str, seconds: float) -> tuple[float, list[float]]:
    status = 204 if call == "heartbeat" else 200
    return load.run(lambda: load.saturate(server.port, requests, status, seconds), seconds + 30)


def _requests(ids: list[str], call: str, connections: int) -> list[bytes]:
    chosen = [ids[-1 - number % len(ids)] for number in range(connections)]
    if call == "heartbeat":
        return [load.request("POST", "/session/heartbeat", session) for session in chosen]
    return [load.request("GET", f"/session/{session}", session) for session in chosen]
