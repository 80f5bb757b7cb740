"""The queue of a server has the changes that operators make with SQL, after it has reconciled with the database."""

from __future__ import annotations

import pytest
import pytest_asyncio

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EndCode
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import Registration
from tests.chaos.shell import sql
from tests.stores import HOST, NOON, OpenStores, joining

OTHER = "lab-8"
EDITS = {
    "end a waiting session": "UPDATE session SET state = 'ended' WHERE session_id = 'eve'",
    "end an active session": "UPDATE session SET state = 'ended' WHERE session_id = 'ann'",
    "remove a waiting session": "DELETE FROM session WHERE session_id = 'dan'",
    "remove an active session": "DELETE FROM session WHERE session_id = 'bob'",
    "remove every session": "DELETE FROM session",
    "move to the front": "UPDATE session SET rank = -7 WHERE session_id = 'fay'",
    "swap two sessions": (
        "UPDATE session SET rank = (SELECT sum(rank) FROM session WHERE session_id IN ('dan', 'fay')) - rank "
        "WHERE session_id IN ('dan', 'fay')"
    ),
    "change the label": "UPDATE session SET client = 'someone' WHERE session_id = 'dan'",
    "change the purpose": "UPDATE session SET purpose = 'release' WHERE session_id = 'ann'",
    "let an active session wait": "UPDATE session SET state = 'waiting' WHERE session_id = 'ann'",
    "put an ended session back": "UPDATE session SET state = 'waiting' WHERE session_id = 'old'",
    "rename a session": "UPDATE session SET session_id = 'eva' WHERE session_id = 'eve'",
    "add a session": (
        "INSERT INTO session (session_id, queue, state, created_at, last_seen_at, rank) "
        "VALUES ('gus', 'default', 'waiting', '2026-01-01', '2026-01-01', 3)"
    ),
    "move to another queue": "UPDATE session SET queue = 'spare' WHERE session_id = 'dan'",
    "change every session": "UPDATE session SET client = 'everyone'",
    "quarantine": "UPDATE lab_host SET quarantine_reason = 'repair' WHERE name = 'lab-7'",
    "drain a host": "UPDATE lab_host SET is_draining = true WHERE name = 'lab-8'",
    "close a slot": "UPDATE slot SET is_open = false WHERE host = 'lab-8'",
}


@pytest_asyncio.fixture
async def queue(stores: OpenStores, sessions: SessionStore, database: str) -> SessionQueue:
    """A queue with two hosts, an active session on each of them, four waiting sessions, and one that has ended."""
    await stores.sessions(OTHER).register_host(Registration("boot-2"))
    for name in ("old", "ann", "bob", "cem", "dan", "eve", "fay"):
        await sessions.join(joining(name), promote=True)
    await sessions.end(["old"], EndCode.CLIENT, "done", NOON)
    sql(database, "INSERT INTO queue (name, last_rank) VALUES ('spare', 0)")
    queue = SessionQueue(sessions, QueueSettings(), Clock(), host=HOST, is_shared=stores.database.is_shared)
    await stores.database.changes()
    await queue.load()
    return queue


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
async def test_an_edit_takes_effect(
    edit: str, queue: SessionQueue, stores: OpenStores, sessions: SessionStore, database: str
) -> None:
    before = list(queue), list(queue.hosts)
    sql(database, edit)
    await queue.reconcile(await stores.database.changes())
    assert (list(queue), list(queue.hosts)) != before
    assert list(queue) == await sessions.live_sessions()
    assert list(queue.hosts) == await sessions.hosts()
