"""Locks that other connections to PostgreSQL hold: those of suspended servers, and of operators' transactions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.rows import Registration, Session
from neops_remote_lab.store.sql.database import SqlDatabase
from tests.postgresql import Cluster
from tests.stores import NOON, OpenStores, joining, opened

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.url(cluster.create_database(cluster.migrated))


@pytest_asyncio.fixture
async def stores(url: str) -> AsyncIterator[OpenStores]:
    async with opened(url) as first:
        await first.sessions().register_host(Registration("boot-1"))
        yield first


async def test_a_server_that_is_suspended_in_a_transaction_blocks_the_queue_only_for_a_while(
    url: str, stores: OpenStores
) -> None:
    is_locked, resume = asyncio.Event(), asyncio.Event()

    async def lock_and_stop(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT name FROM queue FOR UPDATE"))
        is_locked.set()
        await resume.wait()

    async with opened(url) as other:
        assert isinstance(other.database, SqlDatabase)
        suspended = asyncio.create_task(other.database.write(lock_and_stop))
        await is_locked.wait()
        with pytest.raises(DatabaseError, match="locked"):
            await stores.sessions().join(joining("ann"), promote=True)
        await _join(stores, "bob")
        resume.set()
        with pytest.raises(DatabaseError):
            await suspended
        assert [session.session_id for session in await other.sessions().live_sessions()] == ["bob"]


async def _join(stores: OpenStores, name: str) -> Session:
    """Join, and repeat that while the queue is locked."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return await stores.sessions().join(joining(name), promote=True)
        except DatabaseError:
            assert time.monotonic() < deadline, "the queue stays locked"


async def test_a_session_that_an_operator_ends_during_a_promotion_does_not_become_active(
    url: str, stores: OpenStores
) -> None:
    sessions = stores.sessions()
    for name in ("ann", "bob"):
        await sessions.join(joining(name), promote=False)
    async with await psycopg.AsyncConnection.connect(url.replace("+psycopg", "")) as operator:
        await operator.execute("UPDATE session SET state = 'ended' WHERE session_id = 'ann'")
        promotion = asyncio.create_task(sessions.promote(NOON))
        await _wait_until_blocked(operator)
        await operator.commit()
        await promotion
    await sessions.promote(NOON)
    assert [(session.session_id, session.host) for session in await sessions.live_sessions()] == [("bob", "lab-7")]


async def _wait_until_blocked(connection: Any) -> None:
    """Wait until another connection waits for this one."""
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    deadline = time.monotonic() + 10
    while (await (await connection.execute(waits)).fetchone()) == (0,):
        assert time.monotonic() < deadline, "the promotion does not wait"
