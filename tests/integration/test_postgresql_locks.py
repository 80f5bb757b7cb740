"""What other connections to PostgreSQL do at the same time: suspended servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.rows import Registration, Session
from neops_remote_lab.store.sql.database import SqlDatabase
from tests.postgresql import Cluster
from tests.stores import OpenStores, joining, opened


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.url(cluster.create_database(cluster.migrated))


@pytest_asyncio.fixture
async def stores(url: str) -> AsyncIterator[OpenStores]:
    async with opened(url) as first:
        await first.sessions().register_host(Registration("boot-1"))
        yield first


async def test_a_server_that_is_suspended_in_a_transaction_blocks_the_queue_only_for_a_moment(
    url: str, stores: OpenStores
) -> None:
    is_locked, goes_on = asyncio.Event(), asyncio.Event()

    async def lock_and_stop(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT name FROM queue FOR UPDATE"))
        is_locked.set()
        await goes_on.wait()

    async with opened(url) as other:
        assert isinstance(other.database, SqlDatabase)
        suspended = asyncio.create_task(other.database.write(lock_and_stop))
        await is_locked.wait()
        with pytest.raises(DatabaseError, match="locked"):
            await stores.sessions().join(joining("ann"), promote=True)
        await _joined(stores, "bob")
        goes_on.set()
        with pytest.raises(DatabaseError):
            await suspended
        assert [session.session_id for session in await other.sessions().live_sessions()] == ["bob"]


async def _joined(stores: OpenStores, name: str) -> Session:
    """Join, as often as the queue is locked."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return await stores.sessions().join(joining(name), promote=True)
        except DatabaseError:
            assert time.monotonic() < deadline, "the queue stays locked"
