"""The database file: one connection, its PRAGMAs, and transactions that survive cancellation."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import aiosqlite
from sqlalchemy import StaticPool, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neops_remote_lab.store.rows import ANY_CHANGE, Changes
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.database import SqlDatabase, Statement
from neops_remote_lab.store.sql.dialect import Dialect
from neops_remote_lab.store.sql.tables import written

T = TypeVar("T")

DIALECT: Final = Dialect(
    insert=insert,
    joining="""
        SELECT key AS position, json_extract(value, '$[0]') AS session_id, json_extract(value, '$[1]') AS client,
               json_extract(value, '$[2]') AS purpose, json_extract(value, '$[3]') AS idempotency_key,
               json_extract(value, '$[4]') AS at
        FROM json_each(:joining)
    """,
    seen="SELECT json_extract(value, '$[0]') AS session_id, json_extract(value, '$[1]') AS at FROM json_each(:seen)",
    listed="session_id IN (SELECT value FROM json_each(:session_ids))",
)

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


class SqliteDatabase(SqlDatabase[_Connections]):
    """The single writer of the database.

    One connection serves everything, so `PRAGMA data_version` changes exactly when another program has written.
    """

    dialect: ClassVar[Dialect] = DIALECT

    def __init__(self, url: URL, *, synchronous: str = "FULL", busy_timeout: float = 5) -> None:
        """Connect at the first use. `busy_timeout` is in seconds."""
        super().__init__(_create_engine(url, synchronous, busy_timeout), sqlite3.Error)
        self._busy_timeout = busy_timeout
        self._data_version: int | None = None
        self._log_bytes = 0
        self._log = Path(f"{urls.sqlite_file(url)}-wal")

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one `BEGIN IMMEDIATE` transaction, which is durable when this returns."""

        async def transaction(connections: _Connections) -> T:
            async with connections.writer.begin():
                return await work(connections.writer)

        return await self._shielded(transaction)

    async def run(self, *statements: Statement, queue: str | None = None, shielded: bool = True) -> list[list[Any]]:  # noqa: ARG002 - one transaction at a time writes
        # A single statement takes one call of the driver's thread, where `write` takes seven.
        async def execute(connections: _Connections) -> list[list[Any]]:
            driver = connections.driver
            if len(statements) == 1:  # SQLite runs it in a transaction of its own
                return [await _rows(driver, *statements[0])]
            await driver.execute_fetchall("BEGIN IMMEDIATE")
            try:
                rows = [await _rows(driver, *statement) for statement in statements]
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
    def is_shared(self) -> bool:
        return False

    async def wait_for_change(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @property
    def log_bytes(self) -> int:
        return self._log_bytes

    async def ping(self) -> None:
        await self.run(("PRAGMA data_version", {}))

    async def changes(self) -> Changes:
        [[(version,)]] = await self.run(("PRAGMA data_version", {}))
        before, self._data_version = self._data_version, version
        return Changes() if version == before else ANY_CHANGE

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

    async def _connect(self) -> _Connections:
        reader = await self._engine.connect()
        writer = await self._engine.execution_options(**_WRITES).connect()
        driver = (await reader.get_raw_connection()).driver_connection
        if not isinstance(driver, aiosqlite.Connection):
            raise TypeError(f"the driver is {type(driver).__name__}, not aiosqlite")
        return _Connections(reader, writer, driver)

    async def _disconnect(self, connection: _Connections) -> None:
        await connection.writer.close()
        await connection.reader.close()


async def _rows(driver: aiosqlite.Connection, statement: str, values: dict[str, Any]) -> list[Any]:
    return list(await driver.execute_fetchall(statement, {name: _stored(value) for name, value in values.items()}))


def _stored(value: Any) -> Any:
    match value:
        case datetime():
            return written(value)
        case list():
            return json.dumps(value, default=written)
    return value


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _create_engine(url: URL, synchronous: str, busy_timeout: float) -> AsyncEngine:
    engine = create_async_engine(url, poolclass=StaticPool, connect_args={"timeout": busy_timeout})

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
