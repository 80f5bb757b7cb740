"""With PostgreSQL, a server reads only the sessions that have changed, or all if it is not known which ones have."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator

import pytest
import pytest_asyncio

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EndCode
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.postgresql.notifications import MOST_SESSIONS
from neops_remote_lab.store.protocol import DatabaseError, SessionStore
from neops_remote_lab.store.rows import ANY_CHANGE, Changes, Registration, Session
from tests.chaos.shell import sql
from tests.postgresql import Cluster
from tests.stores import HOST, NOON, OpenStores, joining, opened

WAITING = 300
ADD = (
    "INSERT INTO session (session_id, queue, state, created_at, last_seen_at, rank) "
    "SELECT ? || n, 'default', 'waiting', now(), now(), n FROM generate_series(1, ?) AS n"
)


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    with cluster.new_database() as made:
        sql(made, ADD, "early-", WAITING)
        yield made


@pytest_asyncio.fixture
async def stores(url: str) -> AsyncIterator[OpenStores]:
    async with opened(url) as made:
        yield made


@pytest.fixture
def sessions(stores: OpenStores) -> SessionStore:
    return stores.sessions()


@pytest_asyncio.fixture
async def queue(stores: OpenStores, sessions: SessionStore) -> SessionQueue:
    """The queue of a server that has loaded all sessions."""
    await sessions.register_host(Registration("boot-1"))
    queue = SessionQueue(sessions, QueueSettings(), Clock(), host=HOST, is_shared=True)
    assert await stores.database.changes() == ANY_CHANGE
    await queue.load()
    return queue


async def test_changes_by_another_server_are_read_without_the_rest_of_the_queue(
    url: str, stores: OpenStores, sessions: SessionStore, queue: SessionQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Session] = []
    read = sessions.live_sessions

    async def counted(session_ids: Collection[str] | None = None) -> list[Session]:
        found = await read(session_ids)
        rows.extend(found)
        return found

    monkeypatch.setattr(sessions, "live_sessions", counted)
    async with opened(url) as other:
        await other.sessions("lab-8").join(joining("ann"), promote=False)
        await queue.reconcile(await stores.database.changes())
        assert [row.session_id for row in rows] == ["ann"]
        [active] = queue.active
        await other.sessions("lab-8").end([active.session_id], EndCode.CLIENT, "done", NOON)
        await queue.reconcile(await stores.database.changes())
    assert len(rows) == 2
    assert list(queue) == await read()
    assert len(queue) == WAITING


async def test_a_session_that_changes_often_is_reported_once(url: str, stores: OpenStores, queue: SessionQueue) -> None:
    for purpose in ("one", "two", "three"):
        sql(url, "UPDATE session SET purpose = ? WHERE session_id = 'early-7'", purpose)
    assert await stores.database.changes() == Changes(frozenset({"early-7"}))


async def test_beats_last_seen_times_and_ended_sessions_are_not_reported(
    url: str, stores: OpenStores, sessions: SessionStore, queue: SessionQueue
) -> None:
    await queue.end("early-9")
    sql(url, "UPDATE session SET last_seen_at = now()")
    sql(url, "UPDATE lab_host SET beat = beat + 1")
    sql(url, "DELETE FROM session WHERE state = 'ended'")
    assert not await stores.database.changes()


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param((ADD, "late-", MOST_SESSIONS + 1), id="many sessions"),
        pytest.param(("TRUNCATE session",), id="no session is left"),
        pytest.param(("UPDATE session SET session_id = ? WHERE rank = 8", "x" * 9000), id="an id that is too long"),
    ],
)
async def test_all_sessions_are_read_if_it_is_not_known_which_have_changed(
    url: str, stores: OpenStores, sessions: SessionStore, queue: SessionQueue, edit: tuple[str, *tuple[object, ...]]
) -> None:
    sql(url, *edit)
    changes = await stores.database.changes()
    assert changes.sessions is None
    await queue.reconcile(changes)
    assert list(queue) == await sessions.live_sessions()


async def test_everything_counts_as_changed_after_a_lost_connection(
    url: str, stores: OpenStores, queue: SessionQueue
) -> None:
    sql(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'neops-remote-lab'")
    sql(url, "DELETE FROM session WHERE session_id = 'early-7'")
    with pytest.raises(DatabaseError):
        await stores.database.changes()
    assert await stores.database.changes() == ANY_CHANGE
