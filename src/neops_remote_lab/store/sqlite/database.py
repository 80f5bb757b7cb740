"""The database file: one connection, its PRAGMAs, and transactions that survive cancellation."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiosqlite
from sqlalchemy import StaticPool, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neops_remote_lab.store.protocol import Database, DatabaseError

T = TypeVar("T")

_WRITES: Final = {"remote_lab_writes": True}
"""Execution options of a unit of work that writes."""

_LOG_PAGES: Final = 250
"""Length of the write-ahead log, in pages, at which SQLite checkpoints it. Less than the default of 1000, because
appending to a file takes the disk nearly twice as long as overwriting it."""


@dataclass(frozen=True, slots=True)
class _Connections:
    """Three views of the same connection."""

    reader: AsyncConnection
    writer: AsyncConnection
    driver: aiosqlite.Connection


class SqliteDatabase(Database):
    """The single writer of the database.

    One connection serves everything, so `PRAGMA data_version` changes exactly when another program has written.
    """

    def __init__(self, url: str, *, synchronous: str = "FULL", busy_timeout: float = 5) -> None:
        """Connect at the first use. `busy_timeout` is in seconds."""
        self._engine = _create_engine(url, synchronous, busy_timeout)
        self._busy_timeout = busy_timeout
        self._log_bytes = 0
        self._log = Path(f"{database_file(url)}-wal")
        self._open: _Connections | None = None
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one `BEGIN IMMEDIATE` transaction, which is durable when this returns."""

        async def transaction(connections: _Connections) -> T:
            async with connections.writer.begin():
                return await work(connections.writer)

        return await self._shielded(transaction)

    async def run(self, *statements: tuple[str, dict[str, Any]], shielded: bool = True) -> list[list[Any]]:
        """Run SQL statements with their parameters in one durable transaction. Returns the rows of each statement.

        For the hot path: a single statement takes one call of the driver's thread, where `write` takes seven.

        Args:
            shielded: protect the transaction from cancellation of the caller. False saves a task if the caller cannot
                be cancelled.
        """

        async def execute(connections: _Connections) -> list[list[Any]]:
            driver = connections.driver
            if len(statements) == 1:  # SQLite runs it in a transaction of its own
                return [list(await driver.execute_fetchall(*statements[0]))]
            await driver.execute_fetchall("BEGIN IMMEDIATE")
            try:
                rows = [list(await driver.execute_fetchall(*statement)) for statement in statements]
                await driver.commit()
            except BaseException:
                await driver.rollback()
                raise
            return rows

        return await (self._shielded(execute) if shielded else self._locked(execute))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, a single statement that must not write, outside a transaction."""

        async def ask(connections: _Connections) -> T:
            try:
                return await work(connections.reader)
            finally:
                await connections.reader.rollback()

        return await self._shielded(ask)

    @property
    def log_bytes(self) -> int:
        return self._log_bytes

    async def data_version(self) -> int:
        [[(version,)]] = await self.run(("PRAGMA data_version", {}))
        return int(version)

    async def measure_log(self) -> int:
        self._log_bytes = await asyncio.to_thread(_size, self._log)
        return self._log_bytes

    async def shrink_log(self) -> bool:
        async def checkpoint(connections: _Connections) -> bool:
            driver = connections.driver
            try:
                # Do not wait for a program that reads the log: all other statements would wait too.
                await driver.execute_fetchall("PRAGMA busy_timeout = 0")
                [(busy, *_)] = await driver.execute_fetchall("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                await driver.execute_fetchall(f"PRAGMA busy_timeout = {int(self._busy_timeout * 1000)}")
            return not busy

        return await self._shielded(checkpoint)

    async def close(self) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)
        async with self._lock:
            if self._open:
                await self._open.writer.close()
                await self._open.reader.close()
        await self._engine.dispose()

    async def _shielded(self, work: Callable[[_Connections], Awaitable[T]]) -> T:
        """Run work to its end even if the caller is cancelled, so that no transaction stays open."""
        task = asyncio.create_task(self._locked(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _locked(self, work: Callable[[_Connections], Awaitable[T]]) -> T:
        async with self._lock:
            try:
                return await work(await self._connections())
            except DBAPIError as error:
                raise DatabaseError(str(error.orig)) from error
            except sqlite3.Error as error:
                raise DatabaseError(str(error)) from error

    async def _connections(self) -> _Connections:
        if self._open is None:
            reader = await self._engine.connect()
            writer = await self._engine.execution_options(**_WRITES).connect()
            driver = (await reader.get_raw_connection()).driver_connection
            if not isinstance(driver, aiosqlite.Connection):
                raise TypeError(f"the driver is {type(driver).__name__}, not aiosqlite")
            self._open = _Connections(reader, writer, driver)
        return self._open


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def database_url(text: str) -> URL:
    """Parse the URL of a database. Raises ValueError if it is not an aiosqlite URL with a file."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ValueError(
            f"--database must be a URL like sqlite+aiosqlite:////directory/file.sqlite3, not {text}"
        ) from None
    if url.drivername != "sqlite+aiosqlite" or not url.database:
        raise ValueError(f"--database must begin with sqlite+aiosqlite:// and name a file, not {text}")
    return url


def database_file(text: str) -> Path:
    """The file of a database URL. Raises as `database_url`."""
    return Path(database_url(text).database or "")


def _create_engine(url: str, synchronous: str, busy_timeout: float) -> AsyncEngine:
    engine = create_async_engine(database_url(url), poolclass=StaticPool, connect_args={"timeout": busy_timeout})

    # The driver's implicit transactions are deferred: a read followed by a write could then fail immediately with
    # SQLITE_BUSY_SNAPSHOT, regardless of the busy timeout.
    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        cursor.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        if connection.get_execution_options().items() >= _WRITES.items():
            # Executed by the driver directly: a SQLAlchemy statement takes four calls of its thread instead of one.
            connection.connection.dbapi_connection.run_async(lambda driver: driver.execute("BEGIN IMMEDIATE"))

    return engine
