"""The database file: one connection, its PRAGMAs, and units of work that end whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

T = TypeVar("T")

_WRITES: Final = {"remote_lab_writes": True}
"""Execution options of a unit of work that writes."""


class Database:
    """The single writer of the database.

    One connection serves everything, so `PRAGMA data_version` changes exactly when another program has written.
    """

    def __init__(self, url: str, *, synchronous: str = "FULL", busy_timeout: float = 5) -> None:
        """`busy_timeout` in seconds."""
        self._engine = _create_engine(url, synchronous, busy_timeout)
        self._writer = self._engine.execution_options(**_WRITES)
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one `BEGIN IMMEDIATE` transaction; it is on disk when this returns.

        A cancelled caller does not cancel the work: a half-done transaction would stay open on the connection.
        """
        task = asyncio.create_task(self._write(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with self._lock, self._writer.begin() as connection:
            return await work(connection)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` outside a transaction: one statement, which must not write."""
        async with self._lock, self._engine.connect() as connection:
            return await work(connection)

    async def data_version(self) -> int:
        """A number that changes when another program has changed the database."""

        async def ask(connection: AsyncConnection) -> int:
            return int((await connection.exec_driver_sql("PRAGMA data_version")).scalar_one())

        return await self.read(ask)

    async def close(self) -> None:
        """Let the running work end, then let go of the file."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()


def _create_engine(url: str, synchronous: str, busy_timeout: float) -> AsyncEngine:
    parsed = make_url(url)
    if parsed.drivername != "sqlite+aiosqlite":
        raise ValueError(f"the database URL must begin with sqlite+aiosqlite://, not {parsed.drivername}://")
    # Every unit of work ends its own transaction, so a connection that comes back needs no rollback.
    engine = create_async_engine(
        parsed, pool_size=1, max_overflow=0, pool_reset_on_return=None, connect_args={"timeout": busy_timeout}
    )

    # SQLite's driver would begin transactions on its own, and deferred ones: a read followed by a write could then
    # fail with SQLITE_BUSY_SNAPSHOT at once, whatever the busy time-out.
    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        if connection.get_execution_options().items() >= _WRITES.items():
            # Straight to the driver: as a statement it would take four trips to the driver's thread instead of one.
            connection.connection.dbapi_connection.run_async(lambda driver: driver.execute("BEGIN IMMEDIATE"))

    return engine
