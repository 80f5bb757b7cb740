"""Joins per second, and whether all acknowledged joins are in the database after `kill -9`."""

from collections.abc import Sequence

from tests.chaos.shell import sql
from tests.server import LabServer

from bench import load
from bench.measure import PEER, Row, Sample, Target, require
from bench.servers import Bench, Server

CASES = {"serial": 1, "50 at once": 50}
"""The number of connections."""


def measure(bench: Bench) -> list[Row]:
    """Measure joins on one and on many connections."""
    with bench.both() as (ours, theirs):
        servers: list[Server] = [ours, *([theirs] if theirs else [])]
        acknowledged: list[list[str]] = [[] for _ in servers]
        rows = [
            compare(bench, servers, acknowledged, case, at_once=at_once, reference=PEER, no_reference=bench.no_peer)
            for case, at_once in CASES.items()
        ]
        require_durable(ours, acknowledged[0])
    return rows


def compare(
    bench: Bench,
    servers: Sequence[Server],
    acknowledged: list[list[str]],
    case: str,
    *,
    at_once: int,
    reference: str,
    no_reference: str = "",
) -> Row:
    """Join sessions on a server and, if there is one, on the reference server in turn.

    Args:
        acknowledged: the sessions that each server has acknowledged; those of this comparison are added.
        at_once: number of connections.
        no_reference: why there is no reference server.
    """
    count = bench.choose(300, 1000) if at_once == 1 else bench.choose(600, 2000)
    rates: list[list[float]] = [[] for _ in servers]
    took: list[list[float]] = [[] for _ in servers]
    for _ in range(3):
        for index, server in enumerate(servers):
            rate, latencies, joined = _join(server, count // 3, at_once)
            rates[index].append(rate)
            took[index] += latencies
            acknowledged[index] += joined
    medians = [Sample(found).median for found in rates]
    samples = [Sample(found).scaled(1000) for found in took]
    return Row(
        "joining",
        case,
        "ms",
        samples[0],
        reference,
        samples[1] if len(samples) > 1 else None,
        Target(ratio=0.5, sense="≥"),
        given_ratio=medians[0] / medians[1] if len(medians) > 1 else None,
        note=" against ".join(f"{rate:.0f}/s" for rate in medians) if len(medians) > 1 else no_reference,
    )


def _join(server: Server, count: int, at_once: int) -> tuple[float, list[float], list[str]]:
    return load.run(lambda: load.join(server.port, count, at_once), 60)


def require_durable(server: LabServer, acknowledged: list[str]) -> None:
    """Kill the server; raise `BenchError` if a session that it has acknowledged is not in the database."""
    server.kill()
    kept = {session for (session,) in sql(server.database_url, "SELECT session_id FROM session")}
    lost = set(acknowledged) - kept
    require(not lost, f"{len(lost)} of {len(acknowledged)} acknowledged sessions are not in the database")
