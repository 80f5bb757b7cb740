"""The queue in PostgreSQL: hand-over and joins next to SQLite, joins at other servers, and the idle time of several."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.chaos.shell import sql
from tests.postgresql import Cluster, problem, running_cluster
from tests.server import LabServer

from bench import load
from bench.measure import Row, Sample, Target
from bench.polls import Head, WaitingClients, hand_over_in_turn, processor_seconds
from bench.rows import joining
from bench.servers import NEVER, Bench, fill, process_of

POSTGRESQL, SQLITE = "PostgreSQL", "SQLite"
FEW, MANY = 100, 10_000
DURABLE = {"fsync": "on", "full_page_writes": "on"}
"""Commits survive a power loss, as those of SQLite do."""
CONNECTIONS = "300"
FOREIGN_JOIN = """
    INSERT INTO session (session_id, queue, state, created_at, last_seen_at, rank)
    SELECT md5(random()::text), name, 'waiting', now(), now(), last_rank + 1 FROM queue WHERE name = 'default'
"""
"""The statement of a join at another server."""
FOREIGN_JOINS = 20
BETWEEN_JOINS = 0.05
"""Seconds, long enough that a server reads each join separately."""


def measure(bench: Bench) -> list[Row]:
    """The rows of a server on PostgreSQL."""
    if missing := problem():
        return [Row("postgresql", "hand-over and joins", "ms", None, SQLITE, note=f"skipped: {missing}")]
    with _cluster() as cluster:
        return [
            _databases(bench, cluster),
            _lengths(bench, cluster),
            *_joins(bench, cluster),
            _foreign_joins(bench, cluster),
        ]


@contextmanager
def _cluster() -> Iterator[Cluster]:
    with running_cluster(**DURABLE, autovacuum="on", max_connections=CONNECTIONS) as cluster:
        yield cluster


def _databases(bench: Bench, cluster: Cluster) -> Row:
    with cluster.new_database() as url:
        ours, reference = _hand_overs(bench, [({"database": url}, 1), ({}, 1)])
    return Row("postgresql", "hand-over", "ms", ours, SQLITE, reference, Target(ratio=2))


def _lengths(bench: Bench, cluster: Cluster) -> Row:
    with cluster.new_database() as many, cluster.new_database() as few:
        ours, reference = _hand_overs(bench, [({"database": many}, MANY), ({"database": few}, FEW)])
    case = f"hand-over, {MANY} waiting"
    return Row("postgresql", case, "ms", ours, f"{FEW} waiting", reference, Target(ratio=1.5))


def _hand_overs(bench: Bench, queues: list[tuple[dict[str, str], int]]) -> list[Sample]:
    """Milliseconds of hand-overs at servers with these settings and so many waiting sessions."""
    servers = [bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER, **settings) for settings, _ in queues]
    heads = [
        Head(server, fill(server.database_url, waiting)) for server, (_, waiting) in zip(servers, queues, strict=True)
    ]
    with bench.several(servers):
        took = load.run(lambda: hand_over_in_turn(heads, bench.choose(50, 200)), 100)
    return [Sample(seconds).scaled(1000) for seconds in took]


def _joins(bench: Bench, cluster: Cluster) -> list[Row]:
    with cluster.new_database() as url, bench.ours(database=url) as ours, bench.ours() as reference:
        servers, acknowledged = [ours, reference], list[list[str]]([[], []])
        rows = [
            joining.compare(bench, servers, acknowledged, case, at_once=at_once, reference=SQLITE)
            for case, at_once in joining.CASES.items()
        ]
        joining.require_durable(ours, acknowledged[0])
    return [replace(row, name="postgresql", case=f"joining, {row.case}") for row in rows]


def _foreign_joins(bench: Bench, cluster: Cluster) -> Row:
    """The processor time in which a server reads a join at another server."""
    with cluster.new_database() as many, cluster.new_database() as few:
        servers = []
        for url, waiting in ((many, MANY), (few, FEW)):
            fill(url, waiting)
            servers.append(
                bench.our_server(
                    database=url, waiting_timeout=NEVER, active_timeout=NEVER, last_seen_write=NEVER, sql_poll=NEVER
                )
            )
        with bench.several(servers):
            ours, reference = load.run(lambda: _read_joins(bench, servers), 100)
    case = f"a join elsewhere, {MANY} waiting, CPU"
    return Row("postgresql", case, "ms", Sample(ours), f"{FEW} waiting", Sample(reference), Target(ratio=1.5))


async def _read_joins(bench: Bench, servers: list[LabServer]) -> list[list[float]]:
    spent: list[list[float]] = [[] for _ in servers]
    for _ in range(bench.choose(5, 20)):
        for index, server in enumerate(servers):
            before = processor_seconds(process_of(server))
            for _ in range(FOREIGN_JOINS):
                sql(server.database_url, FOREIGN_JOIN)
                await load.pause(BETWEEN_JOINS)
            spent[index].append(1000 * (processor_seconds(process_of(server)) - before) / FOREIGN_JOINS)
    return spent


def measure_idle(bench: Bench) -> list[Row]:
    """Several servers on one database, whose clients are all in long polls."""
    servers, polls = bench.choose(3, 20), bench.choose(200, 2000)
    case = f"{servers} servers, {polls} held, each server's CPU"
    if missing := problem():
        return [Row("idle servers", case, "% of a core", None, "1 server", note=f"skipped: {missing}")]
    with _cluster() as cluster:
        share = polls // servers
        ours, reference = (_idle(bench, cluster, number, share) for number in (servers, 1))
    return [Row("idle servers", case, "% of a core", ours, f"1 server, {share} held", reference, Target(ceiling=2))]


def _idle(bench: Bench, cluster: Cluster, number: int, share: int) -> Sample:
    """Percent of a core that each of so many servers uses, each with its share of the waiting clients."""
    names = [f"lab-{each + 1}" for each in range(number)]
    with cluster.new_database() as url:
        ids = fill(url, number * share, names)
        servers = [
            bench.our_server(
                database=url, lab_host=name, waiting_timeout=NEVER, active_timeout=NEVER, last_seen_write="2"
            )
            for name in names
        ]
        # The first session of each group is active, so it has no long poll.
        groups = [
            WaitingClients(server, [active, *ids[number + index :: number]])
            for index, (server, active) in enumerate(zip(servers, ids[:number], strict=True))
        ]
        with bench.several(servers):
            return Sample(load.run(lambda: _all_idle(bench, groups), 110))


async def _all_idle(bench: Bench, groups: list[WaitingClients]) -> list[float]:
    for group in groups:
        await group.open()
    percent: list[float] = []
    for _ in range(bench.choose(1, 3)):
        percent += await asyncio.gather(*(group.processor_share(bench.choose(4.0, 5.0)) for group in groups))
    for group in groups:
        await group.close()
    return percent
