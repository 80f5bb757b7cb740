"""The database: what it refuses, what is one transaction, and what a person sees in it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.exc import DBAPIError, IntegrityError

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EndCode, LiveLabState, OutcomeCode, QuarantineSource
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.database import Database
from neops_remote_lab.store.labs import LabStore
from neops_remote_lab.store.migrate import migrate
from neops_remote_lab.store.rows import Joining, Lab
from neops_remote_lab.store.sessions import SessionStore
from tests.chaos.shell import locked, sql

HOST = "lab-7"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ADD_SESSION = (
    "INSERT INTO session (session_id, host, state, created_at, last_seen_at, queue, rank, slot) "
    "VALUES (?, ?, ?, ?, ?, 'default', 1, 1)"
)
ADD_LAB = (
    "INSERT INTO lab (lab_id, host, slot, session_id, state, topology, topology_sha256, work_dir, started_at) "
    "VALUES (?, ?, 1, 'ann', ?, 't.yml', 'x', '/x', ?)"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file of the newest schema."""
    file = tmp_path / "lab.sqlite3"
    migrate(f"sqlite+aiosqlite:///{file}")
    return file


@pytest_asyncio.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite+aiosqlite:///{path}", busy_timeout=0.2)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def sessions(database: Database) -> SessionStore:
    store = SessionStore(database, HOST)
    await store.register_host("boot-1")
    return store


@pytest.fixture
def labs(database: Database) -> LabStore:
    return LabStore(database, HOST)


@pytest.fixture
def queue(sessions: SessionStore) -> SessionQueue:
    return SessionQueue(sessions, QueueSettings(), Clock())


def joining(name: str, key: str | None = None, now: datetime = NOON) -> Joining:
    return Joining(name, f"{name}@office", None, key, now)


def lab(name: str, session_id: str = "ann") -> Lab:
    return Lab(name, session_id, LiveLabState.STARTING, "t.yml", "a" * 64, None, f"/labs/{name}", None)


async def join(queue: SessionQueue, key: str | None = None) -> str:
    return (await queue.join(client=None, purpose=None, key=key)).session.session_id


# What it refuses, whoever writes


def test_a_second_active_session_of_a_host_is_refused(path: Path) -> None:
    sql(path, "INSERT INTO lab_host (name, queue) VALUES (?, 'default')", HOST)
    sql(path, ADD_SESSION, "ann", HOST, "active", NOON.isoformat(), NOON.isoformat())
    sql(path, ADD_SESSION, "bob", None, "waiting", NOON.isoformat(), NOON.isoformat())
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, ADD_SESSION, "cem", HOST, "active", NOON.isoformat(), NOON.isoformat())
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")
    sql(path, ADD_SESSION, "dan", "another host", "active", NOON.isoformat(), NOON.isoformat())
    sql(path, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(path, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_second_live_lab_of_a_host_is_refused(path: Path, state: str) -> None:
    sql(path, ADD_LAB, "one", HOST, state, NOON.isoformat())
    for other in ("starting", "running", "stopping"):
        with pytest.raises(sqlite3.IntegrityError):
            sql(path, ADD_LAB, "two", HOST, other, NOON.isoformat())
    sql(path, ADD_LAB, "two", HOST, "ended", NOON.isoformat())
    sql(path, ADD_LAB, "three", "another host", "running", NOON.isoformat())


def test_two_live_sessions_with_one_key_are_refused(path: Path) -> None:
    add = "INSERT INTO session (session_id, queue, state, idempotency_key, created_at, last_seen_at, rank) VALUES "
    sql(path, add + "('ann', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, add + "('bob', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")
    sql(path, add + "('cem', 'default', 'waiting', NULL, '2026-01-01', '2026-01-01', 1)")
    sql(path, add + "('dan', 'default', 'waiting', NULL, '2026-01-01', '2026-01-01', 1)")
    sql(path, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(path, add + "('bob', 'default', 'waiting', 'k', '2026-01-01', '2026-01-01', 1)")


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
async def test_values_that_the_server_could_not_read_are_refused(
    path: Path, sessions: SessionStore, statement: str
) -> None:
    await sessions.join(joining("ann"), promote=True)
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, statement)


async def test_numbers_are_never_given_twice(path: Path, sessions: SessionStore) -> None:
    first = await sessions.join(joining("ann"), promote=True)
    sql(path, "DELETE FROM session")
    assert (await sessions.join(joining("bob"), promote=True)).number > first.number


async def test_a_second_lab_is_refused_before_anything_is_written(path: Path, labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    with pytest.raises(IntegrityError):
        await labs.starting(lab("two"), NOON)
    assert sql(path, "SELECT lab_id FROM lab") == [("one",)]
    assert (await labs.live_lab()) == lab("one")


# Joining


async def test_the_first_to_join_is_active_in_the_same_transaction(path: Path, sessions: SessionStore) -> None:
    first = await sessions.join(joining("ann"), promote=True)
    second = await sessions.join(joining("bob"), promote=False)
    assert (first.state, second.state) == ("active", "waiting")
    assert first.activated_at == NOON
    assert sql(path, "SELECT session_id, state FROM session ORDER BY number") == [("ann", "active"), ("bob", "waiting")]
    assert await sessions.live_sessions() == [first, second]


@pytest.mark.parametrize("promote", [True, False])
async def test_a_key_of_a_live_session_gives_that_session_again(sessions: SessionStore, promote: bool) -> None:
    first = await sessions.join(joining("ann", "k"), promote=promote)
    assert await sessions.join(joining("bob", "k"), promote=promote) == first
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert (await sessions.join(joining("cem", "k"), promote=promote)).session_id == "cem"


@pytest.mark.parametrize("promote", [True, False])
async def test_those_who_join_together_keep_their_order_and_one_key_is_one_session(
    sessions: SessionStore, promote: bool
) -> None:
    keys = ["a", None, "b", "a", None, "b", "a"]
    wishes = [sessions.join(joining(f"s{n}", key), promote=promote) for n, key in enumerate(keys)]
    found = [session.session_id for session in await asyncio.gather(*wishes)]
    assert found == ["s0", "s1", "s2", "s0", "s4", "s2", "s0"]
    live = await sessions.live_sessions()
    assert [session.session_id for session in live] == ["s0", "s1", "s2", "s4"]
    assert [session.state for session in live] == ["active" if promote else "waiting", *["waiting"] * 3]


async def test_whoever_joins_while_the_holder_leaves_gets_the_lab(queue: SessionQueue) -> None:
    for _ in range(10):
        holder = await join(queue)
        assert queue.is_active(holder)
        _, joined = await asyncio.gather(queue.end(holder), join(queue))
        place = queue.place(joined)
        assert place
        assert place.position == 0
        await queue.end(joined)


async def test_a_join_tells_the_place_that_the_session_has_by_then(queue: SessionQueue) -> None:
    holder = await join(queue)
    places = await asyncio.gather(*(queue.join(client=None, purpose=None, key=None) for _ in range(5)))
    assert [place.position for place in places] == [1, 2, 3, 4, 5]
    assert [queue.place(place.session.session_id) for place in places] == places
    await queue.end(holder)


async def test_a_host_serves_its_own_queue(database: Database, sessions: SessionStore) -> None:
    other = SessionStore(database, "lab-8", "big labs")
    await other.register_host("boot-1")
    await sessions.join(joining("ann", "k"), promote=True)
    assert (await other.join(joining("bob", "k"), promote=True)).state == "active"
    assert [session.session_id for session in await other.live_sessions()] == ["bob"]


# Ending


async def test_an_end_makes_the_next_active_in_the_same_transaction(path: Path, sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    ending = await sessions.end(["ann"], EndCode.CLIENT, "done", NOON + timedelta(minutes=1))
    assert ending.ended == ("ann",)
    assert ending.promoted
    assert (ending.promoted.session_id, ending.promoted.activated_at) == ("bob", NOON + timedelta(minutes=1))
    assert sql(path, "SELECT session_id, state FROM session ORDER BY number") == [
        ("ann", "ended"),
        ("bob", "active"),
        ("cem", "waiting"),
    ]


async def test_no_other_program_ever_sees_a_host_without_its_next_session(path: Path, sessions: SessionStore) -> None:
    for name in ("ann", "bob"):
        await sessions.join(joining(name), promote=True)
    # a failure after the end of one and before the promotion of the other undoes both
    sql(
        path,
        "CREATE TRIGGER fail BEFORE UPDATE ON session WHEN NEW.state = 'active' BEGIN SELECT RAISE(ABORT, 'x'); END",
    )
    with pytest.raises((DBAPIError, sqlite3.Error)):
        await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert sql(path, "SELECT state FROM session ORDER BY number") == [("active",), ("waiting",)]
    sql(path, "DROP TRIGGER fail")
    assert (await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)).promoted


async def test_several_who_end_together_make_room_for_one(sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem", "dan"):
        await sessions.join(joining(name), promote=True)
    ending = await sessions.end(["ann", "bob", "nobody"], EndCode.STALE, "timeout", NOON)
    assert ending.ended == ("ann", "bob")
    assert ending.promoted
    assert ending.promoted.session_id == "cem"
    assert await sessions.ended("bob") == (EndCode.STALE, "timeout")
    assert await sessions.ended("cem") is None


async def test_who_has_ended_cannot_end_again(sessions: SessionStore) -> None:
    await sessions.join(joining("ann"), promote=True)
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert (await sessions.end(["ann"], EndCode.CLIENT, "again", NOON)).ended == ()
    assert await sessions.ended("ann") == (EndCode.CLIENT, "done")


async def test_nobody_is_made_active_on_a_quarantined_host(sessions: SessionStore) -> None:
    await sessions.set_quarantine("a container is left", NOON)
    assert (await sessions.join(joining("ann"), promote=True)).state == "waiting"
    assert await sessions.promote(NOON) is None
    await sessions.set_quarantine(None, NOON)
    promoted = await sessions.promote(NOON)
    assert promoted
    assert promoted.session_id == "ann"


# References


async def test_references_are_counted_by_lab_and_the_last_one_stops_it(path: Path, labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.running("one", [{"name": "r1"}], NOON)
    assert [await labs.add_reference("one", "ann", key, NOON) for key in (None, "k", None)] == [1, 2, 3]
    assert await labs.release_reference("one", "k", NOON) == 2
    assert await labs.release_reference("one", None, NOON) == 1
    assert sql(path, "SELECT state FROM lab") == [("running",)]
    assert await labs.release_reference("one", None, NOON) == 0
    assert sql(path, "SELECT state FROM lab") == [("stopping",)]


async def test_one_key_is_one_reference(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.add_reference("one", "ann", "k", NOON)
    with pytest.raises(IntegrityError):
        await labs.add_reference("one", "ann", "k", NOON)
    assert await labs.add_reference("one", "bob", "k", NOON) == 2
    assert await labs.reference_by_key("ann", "k") == ("one", True, None)
    assert await labs.reference_by_key("ann", "other") is None


async def test_the_end_of_a_lab_ends_its_references(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.add_reference("one", "ann", "k", NOON)
    await labs.ended("one", OutcomeCode.LOST, "lost: its host", NOON)
    assert await labs.live_lab() is None
    assert await labs.held_references("one") == 0
    assert await labs.reference_by_key("ann", "k") == ("one", False, OutcomeCode.LOST)
    assert await labs.last_ended("ann") == ("one", OutcomeCode.LOST, "lost: its host")
    await labs.starting(lab("two"), NOON)
    assert await labs.last_ended("ann") is None


async def test_a_reference_to_a_lab_that_never_was_is_refused(labs: LabStore) -> None:
    with pytest.raises(IntegrityError):
        await labs.add_reference("nowhere", "ann", None, NOON)


# History


async def test_only_what_ended_long_enough_ago_is_forgotten(path: Path, sessions: SessionStore, labs: LabStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    await labs.starting(lab("old"), NOON)
    await labs.add_reference("old", "ann", None, NOON)
    await labs.ended("old", OutcomeCode.RELEASED, "released", NOON)
    await labs.starting(lab("new"), NOON)
    await labs.ended("new", OutcomeCode.RELEASED, "released", NOON + timedelta(days=2))
    await labs.starting(lab("live"), NOON)
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    await sessions.end(["bob"], EndCode.CLIENT, "done", NOON + timedelta(days=2))
    assert await sessions.prune(NOON + timedelta(days=1)) == 1
    assert await labs.prune(NOON + timedelta(days=1)) == 1
    assert sql(path, "SELECT session_id FROM session ORDER BY number") == [("bob",), ("cem",)]
    assert sql(path, "SELECT lab_id FROM lab ORDER BY number") == [("new",), ("live",)]
    assert sql(path, "SELECT * FROM lab_reference") == []
    assert await sessions.ended("ann") is None


async def test_holds_are_the_seconds_from_active_to_the_end(sessions: SessionStore) -> None:
    for name, seconds in (("ann", 10), ("bob", 30)):
        await sessions.join(joining(name), promote=True)
        await sessions.end([name], EndCode.CLIENT, "done", NOON + timedelta(seconds=seconds))
    assert await sessions.latest_holds() == pytest.approx([10, 30], abs=0.01)
    assert await sessions.latest_holds(1) == pytest.approx([30], abs=0.01)


# People


async def test_a_session_ended_by_hand_gets_its_time_and_reason(path: Path, sessions: SessionStore) -> None:
    for name in ("ann", "bob"):
        await sessions.join(joining(name), promote=True)
    sql(path, "UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
    sql(path, "UPDATE session SET state = 'ended', end_detail = 'lunch' WHERE session_id = 'bob'")
    rows = sql(path, "SELECT end_code, end_detail, ended_at FROM session ORDER BY number")
    assert [row[:2] for row in rows] == [("operator", "ended by an operator"), ("operator", "lunch")]
    for *_, ended_at in rows:
        ended = datetime.fromisoformat(ended_at).replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - ended) < timedelta(minutes=1)
    assert await sessions.ended("ann") == (EndCode.OPERATOR, "ended by an operator")
    assert await sessions.latest_holds()


async def test_a_session_made_active_by_hand_gets_the_free_host_of_its_queue(
    path: Path, database: Database, sessions: SessionStore
) -> None:
    await SessionStore(database, "lab-6").register_host("boot-1")
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    grant = "UPDATE session SET state = 'active' WHERE session_id = ?"
    sql(path, grant, "cem")
    assert sql(path, "SELECT session, host, slot FROM active") == [("cem", "lab-6", 1), ("ann", HOST, 1)]
    assert sql(path, "SELECT count(*) FROM session WHERE state = 'active' AND activated_at IS NULL") == [(0,)]
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, grant, "bob")
    sql(path, "UPDATE session SET state = 'waiting' WHERE session_id = 'cem'")
    assert sql(path, "SELECT host, slot, activated_at FROM session WHERE session_id = 'cem'") == [(None, None, None)]
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann", "bob", "cem"]


async def test_a_rank_is_never_given_twice_wherever_an_operator_moves_somebody(
    path: Path, sessions: SessionStore
) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=False)
    to_the_back = (
        "UPDATE session SET rank = (SELECT max(rank) + 1 FROM session WHERE state = 'waiting') WHERE session_id = ?"
    )
    for _ in range(3):
        sql(path, to_the_back, "ann")
        sql(path, to_the_back, "bob")
    await sessions.join(joining("dan"), promote=False)
    order = [session.session_id for session in await sessions.live_sessions()]
    assert order == ["cem", "ann", "bob", "dan"]
    sql(path, "DELETE FROM session")
    await sessions.join(joining("eve"), promote=False)
    ((rank,),) = sql(path, "SELECT rank FROM session")
    assert rank > len(order) + 6


EVENTS = "SELECT what, session_id, lab_id, host, slot, code, detail FROM event ORDER BY number"


async def test_each_change_leaves_its_event(path: Path, sessions: SessionStore, labs: LabStore) -> None:
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
    assert sql(path, EVENTS) == [
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
    times = [time for (time,) in sql(path, "SELECT time FROM recent_events ORDER BY number")]
    assert times[0] == times[3] == "2026-05-01 12:00:00"
    assert (times[4], times[8], times[9]) == ("2026-05-01 12:00:08", "2026-05-01 12:00:11", "2026-05-01 12:00:12")
    assert sql(path, "SELECT session, client, topology, code FROM recent_events WHERE what = 'lab_ended'") == [
        ("ann", "ann@office", "t.yml", "released")
    ]


async def test_what_a_person_changes_leaves_its_event_too(path: Path, sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=False)
    sql(path, "DELETE FROM event")
    sql(path, "UPDATE session SET rank = 0 WHERE session_id = 'bob'")
    sql(path, "UPDATE session SET state = 'active' WHERE session_id = 'bob'")
    sql(path, "UPDATE session SET state = 'waiting' WHERE session_id = 'bob'")
    sql(path, "UPDATE session SET state = 'ended' WHERE session_id = 'bob'")
    sql(path, "DELETE FROM session WHERE session_id = 'ann'")
    sql(path, "UPDATE lab_host SET quarantine_reason = 'maintenance'")
    sql(path, "UPDATE lab_host SET quarantine_reason = NULL")
    place = (HOST, 1)
    assert sql(path, EVENTS) == [
        ("session_moved", "bob", None, None, None, None, "from rank 2 to rank 0"),
        ("session_granted", "bob", None, *place, None, None),
        ("session_requeued", "bob", None, *place, None, None),
        ("session_ended", "bob", None, None, None, "operator", "ended by an operator"),
        ("session_ended", "ann", None, None, None, "operator", "removed by an operator"),
        ("quarantine_set", None, None, HOST, None, "operator", "maintenance"),
        ("quarantine_lifted", None, None, HOST, None, "operator", "maintenance"),
    ]
    for (at,) in sql(path, "SELECT at FROM event"):
        assert abs(datetime.now(UTC) - datetime.fromisoformat(at).replace(tzinfo=UTC)) < timedelta(minutes=1)


async def test_an_event_is_never_changed_and_is_forgotten_with_the_history(path: Path, sessions: SessionStore) -> None:
    for days in range(3):
        await sessions.join(replace(joining(f"s{days}"), now=NOON + timedelta(days=days)), promote=False)
    with pytest.raises(sqlite3.IntegrityError):
        sql(path, "UPDATE event SET detail = 'nothing'")
    await sessions.prune(NOON + timedelta(days=1))
    assert sql(path, "SELECT session_id FROM event") == [("s1",), ("s2",)]
    await sessions.prune(NOON + timedelta(days=9))
    assert sql(path, "SELECT count(*) FROM event") == [(0,)]
    await sessions.join(replace(joining("s9"), now=NOON + timedelta(days=9)), promote=False)
    assert sql(path, "SELECT number FROM event") == [(4,)]


async def test_a_quarantine_set_by_hand_is_the_operators_and_only_the_operator_lifts_it(
    path: Path, sessions: SessionStore
) -> None:
    assert await sessions.set_quarantine("a container is left", NOON) == (
        QuarantineSource.SERVER,
        "a container is left",
    )
    sql(path, "UPDATE lab_host SET quarantine_reason = 'maintenance'")
    noon = (QuarantineSource.OPERATOR, "maintenance")
    assert await sessions.quarantine() == noon
    assert await sessions.set_quarantine(None, NOON) == noon
    assert await sessions.set_quarantine("a container is left", NOON) == noon
    (since,) = sql(path, "SELECT since FROM quarantine")[0]
    assert abs(datetime.now(UTC) - datetime.fromisoformat(since).replace(tzinfo=UTC)) < timedelta(minutes=1)
    sql(path, "UPDATE lab_host SET quarantine_reason = NULL")
    assert await sessions.quarantine() is None
    assert sql(path, "SELECT quarantined_by, quarantined_at FROM lab_host") == [(None, None)]
    await sessions.set_quarantine("a bridge is left", NOON)
    await sessions.set_quarantine("a container is left", NOON + timedelta(minutes=1))
    assert await sessions.quarantine() == (QuarantineSource.SERVER, "a container is left")


async def test_the_views_say_who_waits_who_is_active_and_what_was(
    path: Path, sessions: SessionStore, labs: LabStore
) -> None:
    def look(view: str) -> list[dict[str, Any]]:
        columns = [name for (name,) in sql(path, "SELECT name FROM pragma_table_info(?)", view)]
        return [dict(zip(columns, row, strict=True)) for row in sql(path, f"SELECT * FROM {view}")]  # noqa: S608

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

    assert [(row["place"], row["client"]) for row in look("waiting")] == [(1, "cem@office"), (2, "dan@office")]
    (holder,) = look("active")
    assert (holder["client"], holder["active_since"]) == ("bob@office", "2026-05-01 12:02:00")
    (current,) = look("current_lab")
    assert (current["topology"], current["state"], current["client"]) == ("t.yml", "running", "bob@office")
    assert (current["references_held"], current["devices"]) == (1, 2)
    (reference,) = look("held_references")
    assert (reference["client"], reference["held_since"]) == ("bob@office", "2026-05-01 12:00:00")
    (past,) = look("session_history")
    assert (past["client"], past["end_code"], past["end_reason"], past["waited_seconds"], past["held_seconds"]) == (
        "ann@office",
        "client",
        "done",
        0,
        120,
    )
    (gone,) = look("lab_history")
    assert (gone["outcome_code"], gone["outcome"], gone["start_seconds"]) == ("released", "released", 8)
    (quarantined,) = look("quarantine")
    assert (quarantined["host"], quarantined["quarantined_by"], quarantined["reason"]) == (
        HOST,
        "server",
        "a container is left",
    )
    with pytest.raises(sqlite3.OperationalError):
        sql(path, "DELETE FROM active")


# The connection


async def test_what_another_program_writes_is_noticed_and_what_we_write_is_not(
    path: Path, database: Database, sessions: SessionStore
) -> None:
    before = await database.data_version()
    await sessions.join(joining("ann"), promote=True)
    assert await database.data_version() == before
    sql(path, "UPDATE session SET client = 'bob'")
    assert await database.data_version() != before


async def test_a_cancelled_caller_leaves_the_database_usable(database: Database, sessions: SessionStore) -> None:
    await sessions.join(joining("ann"), promote=True)
    calls: list[Callable[[], Awaitable[object]]] = [
        sessions.live_sessions,
        lambda: sessions.ended("ann"),
        lambda: sessions.promote(NOON),
        database.data_version,
    ]
    for turns in range(12):  # so many turns of the loop until it is cancelled: it is in the middle of something
        for call in calls:
            task = asyncio.ensure_future(call())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    await sessions.join(joining("bob"), promote=True)


async def test_a_cancelled_join_is_written_all_the_same(path: Path, sessions: SessionStore) -> None:
    task = asyncio.ensure_future(sessions.join(joining("ann"), promote=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    assert sql(path, "SELECT state FROM session") == [("active",)]


async def test_a_database_that_somebody_has_locked_fails_the_write_and_is_fine_afterwards(
    path: Path, sessions: SessionStore
) -> None:
    await sessions.join(joining("ann"), promote=True)
    with locked(path):
        for promote in (True, False):
            with pytest.raises((DBAPIError, sqlite3.Error)):
                await sessions.join(joining(f"bob-{promote}"), promote=promote)
        with pytest.raises((DBAPIError, sqlite3.Error)):
            await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    assert (await sessions.join(joining("cem"), promote=False)).state == "waiting"
    assert (await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)).promoted


@pytest.mark.parametrize(("level", "number"), [("FULL", 2), ("NORMAL", 1), ("EXTRA", 3)])
async def test_the_connection_is_set_up_for_durability(path: Path, level: str, number: int) -> None:
    database = Database(f"sqlite+aiosqlite:///{path}", synchronous=level)

    async def ask(name: str) -> Any:
        return await database.read(lambda connection: _pragma(connection, name))

    assert await ask("synchronous") == number
    assert await ask("journal_mode") == "wal"
    assert await ask("foreign_keys") == 1
    await database.close()


async def _pragma(connection: Any, name: str) -> Any:
    return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()


async def test_times_come_back_as_they_were_written(sessions: SessionStore) -> None:
    elsewhere = datetime.fromisoformat("2026-05-01T14:00:00.123456+02:00")
    for promote in (True, False):
        joined = await sessions.join(replace(joining(f"s-{promote}"), now=elsewhere), promote=promote)
        assert joined.created_at == elsewhere
        assert joined.created_at.tzinfo == UTC
