"""The schema: constraints, defaults, triggers, and the views for operators."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from neops_remote_lab.core.codes import EndCode, OutcomeCode, QuarantineSource
from neops_remote_lab.store.protocol import DatabaseError, LabStore, SessionStore
from neops_remote_lab.store.rows import Registration
from neops_remote_lab.store.sql.tables import read
from tests.chaos.shell import locked, refused, sql
from tests.stores import HOST, NOON, OpenStores, joining, lab

ADD_SESSION = (
    "INSERT INTO session (session_id, host, state, created_at, last_seen_at, queue, rank, slot) "
    "VALUES (?, ?, ?, ?, ?, 'default', 1, 1)"
)
ADD_LAB = (
    "INSERT INTO lab (lab_id, host, slot, session_id, state, topology, topology_sha256, work_dir, started_at) "
    "VALUES (?, ?, 1, 'ann', ?, 't.yml', 'x', '/x', ?)"
)


# Constraints, which apply to operators too


def test_a_second_active_session_of_a_host_is_refused(database: str) -> None:
    sql(database, "INSERT INTO lab_host (name, queue) VALUES (?, 'default')", HOST)
    sql(database, "INSERT INTO slot (host, slot, is_open) VALUES (?, 1, true)", HOST)
    sql(database, ADD_SESSION, "ann", HOST, "active", NOON.isoformat(), NOON.isoformat())
    sql(database, ADD_SESSION, "bob", None, "waiting", NOON.isoformat(), NOON.isoformat())
    with refused(database):
        sql(database, ADD_SESSION, "cem", HOST, "active", NOON.isoformat(), NOON.isoformat())
    with refused(database):
        sql(database, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")
    sql(database, ADD_SESSION, "dan", "another host", "active", NOON.isoformat(), NOON.isoformat())
    sql(database, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(database, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_second_live_lab_of_a_host_is_refused(database: str, state: str) -> None:
    sql(database, ADD_LAB, "one", HOST, state, NOON.isoformat())
    for other in ("starting", "running", "stopping"):
        with refused(database):
            sql(database, ADD_LAB, "two", HOST, other, NOON.isoformat())
    sql(database, ADD_LAB, "two", HOST, "ended", NOON.isoformat())
    sql(database, ADD_LAB, "three", "another host", "running", NOON.isoformat())


def test_two_live_sessions_with_one_key_are_refused(database: str) -> None:
    add = "INSERT INTO session (session_id, queue, state, idempotency_key, created_at, last_seen_at, rank) VALUES "
    sql(database, add + "('ann', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")
    with refused(database):
        sql(database, add + "('bob', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")
    sql(database, add + "('cem', 'default', 'waiting', NULL, '2026-01-01', '2026-01-01', 1)")
    sql(database, add + "('dan', 'default', 'waiting', NULL, '2026-01-01', '2026-01-01', 1)")
    sql(database, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(database, add + "('bob', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE session SET state = 'asleep'",
        "UPDATE session SET state = 'ACTIVE'",
        "UPDATE session SET created_at = 'noon'",
        "UPDATE session SET ended_at = 'yesterday evening'",
        "UPDATE session SET created_at = NULL",
        "UPDATE session SET session_id = NULL",
        "UPDATE session SET end_code = 'bored'",
        "UPDATE lab_host SET quarantined_at = 'now-ish'",
        "UPDATE lab_host SET quarantined_by = 'nobody'",
    ],
)
async def test_values_that_the_server_cannot_read_are_refused(
    database: str, sessions: SessionStore, statement: str
) -> None:
    await sessions.join(joining("ann"), promote=True)
    with refused(database):
        sql(database, statement)


async def test_numbers_are_never_reused(database: str, sessions: SessionStore) -> None:
    first = await sessions.join(joining("ann"), promote=True)
    sql(database, "DELETE FROM session")
    assert (await sessions.join(joining("bob"), promote=True)).number > first.number


FAILING_TRIGGER = {
    "sqlite": [
        "CREATE TRIGGER fail BEFORE UPDATE ON session WHEN NEW.state = 'active' BEGIN SELECT RAISE(ABORT, 'x'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''x''; END'",
        "CREATE TRIGGER fail BEFORE UPDATE ON session FOR EACH ROW WHEN (NEW.state = 'active') EXECUTE FUNCTION fail()",
    ],
}


async def test_the_end_of_a_session_and_the_promotion_are_one_transaction(
    database: str, sessions: SessionStore
) -> None:
    for name in ("ann", "bob"):
        await sessions.join(joining(name), promote=True)
    # the promotion fails after the other session has ended: both must be undone
    for statement in FAILING_TRIGGER[database.partition("+")[0]]:
        sql(database, statement)
    with pytest.raises(DatabaseError):
        await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert sql(database, "SELECT state FROM session ORDER BY number") == [("active",), ("waiting",)]
    sql(database, "DROP TRIGGER fail" + ("" if database.startswith("sqlite") else " ON session"))
    assert (await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)).promoted


# Changes and views for operators


async def test_a_session_ended_with_sql_gets_its_time_and_reason(database: str, sessions: SessionStore) -> None:
    for name in ("ann", "bob"):
        await sessions.join(joining(name), promote=True)
    sql(database, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(database, "UPDATE session SET state = 'ended', end_detail = 'lunch' WHERE session_id = 'bob'")
    rows = sql(database, "SELECT end_code, end_detail, ended_at FROM session ORDER BY number")
    assert [row[:2] for row in rows] == [("operator", "ended by an operator"), ("operator", "lunch")]
    for *_, ended_at in rows:
        ended = read(ended_at)
        assert abs(datetime.now(UTC) - ended) < timedelta(minutes=1)
    assert await sessions.ended("ann") == (EndCode.OPERATOR, "ended by an operator")
    assert await sessions.latest_holds()


async def test_a_session_made_active_with_sql_gets_the_free_host_of_its_queue(
    database: str, stores: OpenStores, sessions: SessionStore
) -> None:
    await stores.sessions("lab-6").register_host(Registration("boot-1"))
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=name == "ann")
    grant = "UPDATE session SET state = 'active' WHERE session_id = ?"
    sql(database, grant, "cem")
    assert sql(database, "SELECT session, host, slot FROM active") == [("ann", "lab-6", 1), ("cem", HOST, 1)]
    assert sql(database, "SELECT count(*) FROM session WHERE state = 'active' AND activated_at IS NULL") == [(0,)]
    with refused(database):
        sql(database, grant, "bob")
    sql(database, "UPDATE session SET state = 'waiting' WHERE session_id = 'cem'")
    assert sql(database, "SELECT host, slot, activated_at FROM session WHERE session_id = 'cem'") == [
        (None, None, None)
    ]
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann", "bob", "cem"]


async def test_a_rank_is_never_reused_after_an_operator_has_moved_a_session(
    database: str, sessions: SessionStore
) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=False)
    to_the_back = (
        "UPDATE session SET rank = (SELECT max(rank) + 1 FROM session WHERE state = 'waiting') WHERE session_id = ?"
    )
    for _ in range(3):
        sql(database, to_the_back, "ann")
        sql(database, to_the_back, "bob")
    await sessions.join(joining("dan"), promote=False)
    order = [session.session_id for session in await sessions.live_sessions()]
    assert order == ["cem", "ann", "bob", "dan"]
    sql(database, "DELETE FROM session")
    await sessions.join(joining("eve"), promote=False)
    ((rank,),) = sql(database, "SELECT rank FROM session")
    assert rank > len(order) + 6


EVENTS = "SELECT what, session_id, lab_id, host, slot, code, detail FROM event ORDER BY number"


async def test_each_change_writes_an_event(database: str, sessions: SessionStore, labs: LabStore) -> None:
    for name in ("ann", "bob"):
        await sessions.join(joining(name, name), promote=True)
    await sessions.join(joining("again", "bob"), promote=False)
    await labs.starting(lab("one"), NOON)
    await labs.running("one", [], NOON + timedelta(seconds=8))
    await labs.add_reference("one", "ann", None, NOON + timedelta(seconds=9))
    await labs.release_reference("one", None, NOON + timedelta(seconds=10))
    await labs.stopping("one")
    await labs.ended("one", OutcomeCode.RELEASED, "released", NOON + timedelta(seconds=11))
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON + timedelta(seconds=12))
    await sessions.set_quarantine("a bridge is left", NOON + timedelta(seconds=13))
    await sessions.set_quarantine(None, NOON)
    place = (HOST, 1)
    assert sql(database, EVENTS) == [
        ("session_joined", "ann", None, None, None, None, None),
        ("session_granted", "ann", None, *place, None, None),
        ("session_joined", "bob", None, None, None, None, None),
        ("lab_starting", "ann", "one", *place, None, None),
        ("lab_running", "ann", "one", *place, None, None),
        ("reference_acquired", "ann", "one", *place, None, None),
        ("reference_released", "ann", "one", *place, None, None),
        ("lab_stopping", "ann", "one", *place, None, None),
        ("lab_ended", "ann", "one", *place, "released", "released"),
        ("session_ended", "ann", None, *place, "client", "done"),
        ("session_granted", "bob", None, *place, None, None),
        ("quarantine_set", None, None, HOST, None, "server", "a bridge is left"),
        ("quarantine_lifted", None, None, HOST, None, "server", "a bridge is left"),
    ]
    times = [time for (time,) in sql(database, "SELECT time FROM recent_events ORDER BY number")]
    assert times[0] == times[3] == "2026-05-01 12:00:00"
    assert (times[4], times[8], times[9]) == ("2026-05-01 12:00:08", "2026-05-01 12:00:11", "2026-05-01 12:00:12")
    assert sql(database, "SELECT session, client, topology, code FROM recent_events WHERE what = 'lab_ended'") == [
        ("ann", "ann@office", "t.yml", "released")
    ]


async def test_a_change_made_with_sql_writes_an_event_too(database: str, sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=False)
    sql(database, "DELETE FROM event")
    sql(database, "UPDATE session SET rank = 0 WHERE session_id = 'bob'")
    sql(database, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")
    sql(database, "UPDATE session SET state = 'waiting' WHERE session_id = 'bob'")
    sql(database, "UPDATE session SET state = 'ended' WHERE session_id = 'bob'")
    sql(database, "DELETE FROM session WHERE session_id = 'ann'")
    sql(database, "UPDATE lab_host SET quarantine_reason = 'maintenance'")
    sql(database, "UPDATE lab_host SET quarantine_reason = NULL")
    place = (HOST, 1)
    assert sql(database, EVENTS) == [
        ("session_moved", "bob", None, None, None, None, "from rank 2 to rank 0"),
        ("session_granted", "bob", None, *place, None, None),
        ("session_requeued", "bob", None, *place, None, None),
        ("session_ended", "bob", None, None, None, "operator", "ended by an operator"),
        ("session_ended", "ann", None, None, None, "operator", "removed by an operator"),
        ("quarantine_set", None, None, HOST, None, "operator", "maintenance"),
        ("quarantine_lifted", None, None, HOST, None, "operator", "maintenance"),
    ]
    for (at,) in sql(database, "SELECT at FROM event"):
        assert abs(datetime.now(UTC) - read(at)) < timedelta(minutes=1)


async def test_an_event_never_changes_and_is_removed_with_the_history(database: str, sessions: SessionStore) -> None:
    for days in range(3):
        await sessions.join(replace(joining(f"s{days}"), now=NOON + timedelta(days=days)), promote=False)
    with refused(database):
        sql(database, "UPDATE event SET detail = 'nothing'")
    await sessions.prune(NOON + timedelta(days=1))
    assert sql(database, "SELECT session_id FROM event") == [("s1",), ("s2",)]
    await sessions.prune(NOON + timedelta(days=9))
    assert sql(database, "SELECT count(*) FROM event") == [(0,)]
    await sessions.join(replace(joining("s9"), now=NOON + timedelta(days=9)), promote=False)
    assert sql(database, "SELECT number FROM event") == [(4,)]


async def test_a_quarantine_set_with_sql_is_lifted_only_with_sql(database: str, sessions: SessionStore) -> None:
    assert await sessions.set_quarantine("a container is left", NOON) == (
        QuarantineSource.SERVER,
        "a container is left",
    )
    sql(database, "UPDATE lab_host SET quarantine_reason = 'maintenance'")
    by_operator = (QuarantineSource.OPERATOR, "maintenance")
    assert await sessions.quarantine() == by_operator
    assert await sessions.set_quarantine(None, NOON) == by_operator
    assert await sessions.set_quarantine("a container is left", NOON) == by_operator
    (since,) = sql(database, "SELECT since FROM quarantine")[0]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(since).replace(tzinfo=UTC)) < timedelta(minutes=1)
    sql(database, "UPDATE lab_host SET quarantine_reason = NULL")
    assert await sessions.quarantine() is None
    assert sql(database, "SELECT quarantined_by, quarantined_at FROM lab_host") == [(None, None)]
    await sessions.set_quarantine("a bridge is left", NOON)
    await sessions.set_quarantine("a container is left", NOON + timedelta(minutes=1))
    assert await sessions.quarantine() == (QuarantineSource.SERVER, "a container is left")


COLUMNS = {
    "sqlite": "SELECT name FROM pragma_table_info(?)",
    "postgresql": "SELECT column_name FROM information_schema.columns WHERE table_name = ? ORDER BY ordinal_position",
}


async def test_the_views_show_waiting_active_and_ended_sessions(
    database: str, sessions: SessionStore, labs: LabStore
) -> None:
    def rows_of(view: str) -> list[dict[str, Any]]:
        columns = [name for (name,) in sql(database, COLUMNS[database.partition("+")[0]], view)]
        return [dict(zip(columns, row, strict=True)) for row in sql(database, f"SELECT * FROM {view}")]  # noqa: S608

    for name in ("ann", "bob", "cem", "dan"):
        await sessions.join(joining(name), promote=True)
    await labs.starting(lab("old", "ann"), NOON)
    await labs.running("old", [], NOON + timedelta(seconds=8))
    await labs.ended("old", OutcomeCode.RELEASED, "released", NOON + timedelta(minutes=1))
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON + timedelta(minutes=2))
    await labs.starting(lab("live", "bob"), NOON)
    await labs.running("live", [{"name": "r1"}, {"name": "r2"}], NOON)
    await labs.add_reference("live", "bob", None, NOON)
    await sessions.set_quarantine("a container is left", NOON)

    assert [(row["place"], row["client"]) for row in rows_of("waiting")] == [(1, "cem@office"), (2, "dan@office")]
    (holder,) = rows_of("active")
    assert (holder["client"], holder["active_since"]) == ("bob@office", "2026-05-01 12:02:00")
    (current,) = rows_of("current_lab")
    assert (current["topology"], current["state"], current["client"]) == ("t.yml", "running", "bob@office")
    assert (current["references_held"], current["devices"]) == (1, 2)
    (reference,) = rows_of("held_references")
    assert (reference["client"], reference["held_since"]) == ("bob@office", "2026-05-01 12:00:00")
    (past,) = rows_of("session_history")
    assert (past["client"], past["end_code"], past["end_reason"], past["waited_seconds"], past["held_seconds"]) == (
        "ann@office",
        "client",
        "done",
        0,
        120,
    )
    (gone,) = rows_of("lab_history")
    assert (gone["outcome_code"], gone["outcome"], gone["start_seconds"]) == ("released", "released", 8)
    (quarantined,) = rows_of("quarantine")
    assert (quarantined["host"], quarantined["quarantined_by"], quarantined["reason"]) == (
        HOST,
        "server",
        "a container is left",
    )


# The connection


async def test_a_locked_database_fails_a_write_and_works_afterwards(database: str, sessions: SessionStore) -> None:
    await sessions.join(joining("ann"), promote=True)
    with locked(database):
        for promote in (True, False):
            with pytest.raises(DatabaseError):
                await sessions.join(joining(f"bob-{promote}"), promote=promote)
        with pytest.raises(DatabaseError):
            await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    assert (await sessions.join(joining("cem"), promote=False)).state == "waiting"
    assert (await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)).promoted
