"""`POST /session` a second, and that each one that was acknowledged survives `kill -9`."""

import sqlite3
from contextlib import closing

from tests.server import LabServer

from bench import load
from bench.measure import PEER, Row, Sample, Target, require
from bench.servers import Bench, Server


def measure(bench: Bench) -> list[Row]:
    """The rows."""
    with bench.both() as (ours, theirs):
        servers: list[Server] = [ours, *([theirs] if theirs else [])]
        acknowledged: list[list[str]] = [[] for _ in servers]
        rows = [
            _compare(bench, servers, acknowledged, case, at_once)
            for case, at_once in (("serial", 1), ("50 at once", 50))
        ]
        _require_durable(ours, acknowledged[0])
    return rows


def _compare(bench: Bench, servers: list[Server], acknowledged: list[list[str]], case: str, at_once: int) -> Row:
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
        PEER,
        samples[1] if len(samples) > 1 else None,
        Target(ratio=0.5, sense="≥"),
        given_ratio=medians[0] / medians[1] if len(medians) > 1 else None,
        note=" against ".join(f"{rate:.0f}/s" for rate in medians) if len(medians) > 1 else bench.no_peer,
    )


def _join(server: Server, count: int, at_once: int) -> tuple[float, list[float], list[str]]:
    return load.run(lambda: load.join(server.port, count, at_once), 60)


def _require_durable(server: LabServer, acknowledged: list[str]) -> None:
    server.kill()
    with closing(sqlite3.connect(server.database)) as connection:
        kept = {session for (session,) in connection.execute("SELECT session_id FROM session")}
    lost = set(acknowledged) - kept
    require(not lost, f"{len(lost)} of {len(acknowledged)} acknowledged sessions are not in the database")
