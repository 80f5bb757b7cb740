"""The PostgreSQL database: one connection, which also listens for changes that other programs make."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

import psycopg
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import NullPool, PoolProxiedConnection, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from neops_remote_lab.store.postgresql.notifications import CHANNEL, ForeignChanges
from neops_remote_lab.store.postgresql.requirements import require_usable
from neops_remote_lab.store.postgresql.values import TextDumper, as_json
from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.rows import Changes
from neops_remote_lab.store.sql.database import SqlDatabase, Statement
from neops_remote_lab.store.sql.dialect import Dialect

T = TypeVar("T")

DIALECT: Final = Dialect(
    insert=insert,
    joining="""
        SELECT ordinality - 1 AS position, value ->> 0 AS session_id, value ->> 1 AS client, value ->> 2 AS purpose,
               value ->> 3 AS idempotency_key, CAST(value ->> 4 AS timestamp) AT TIME ZONE 'UTC' AS at
        FROM json_array_elements(:joining) WITH ORDINALITY
    """,
    seen="""
        SELECT value ->> 0 AS session_id, CAST(value ->> 1 AS timestamp) AT TIME ZONE 'UTC' AS at
        FROM json_array_elements(:seen)
    """,
    # With IN, PostgreSQL expects a long list, and reads all sessions instead of looking each one up.
    listed="session_id = ANY (ARRAY(SELECT json_array_elements_text(:session_ids)))",
)

SERVERS: Final = "hashtext('neops-remote-lab servers')"
"""The advisory lock that all servers of a database share."""
CHANGE_PAUSE: Final = 0.02
"""Seconds to wait for further notifications before a change is looked at."""
DEADLOCK_TRIES: Final = 3
"""How often a transaction is tried that PostgreSQL rolls back because it and an operator's wait for each other."""
SHORTEST_IDLE_LIMIT: Final = 2.0
"""Minimum seconds until PostgreSQL rolls back a transaction in which the server runs no statement."""
KEEPALIVES: Final = 3
"""Probes of an idle connection that may stay unanswered before PostgreSQL closes it."""
_LOCK_QUEUE: Final = "SELECT FROM queue WHERE name = :queue FOR NO KEY UPDATE"


class Deadlock(DatabaseError):
    """The transaction was rolled back, because it and another one waited for each other."""


@dataclass(frozen=True, slots=True)
class _Connections:
    """Two views of the same connection, which begins no transaction by itself."""

    sql: AsyncConnection
    driver: psycopg.AsyncConnection[Any]


class PostgresqlDatabase(SqlDatabase[_Connections]):
    """The connection of one server to the database."""

    dialect: ClassVar[Dialect] = DIALECT

    def __init__(self, url: URL, *, synchronous: str = "FULL", busy_timeout: float = 5) -> None:
        """Connect at the first use, and again after a connection was lost.

        Args:
            url: the database.
            synchronous: with NORMAL, a commit does not wait for the disk of the database.
            busy_timeout: seconds to wait for a lock, and for a lost server.
        """
        limit = max(2, int(busy_timeout))
        super().__init__(_create_engine(url, limit), psycopg.Error)
        self._settings = {"timezone": "UTC", "lock_timeout": f"{int(busy_timeout * 1000)}ms"} | _limits(
            limit, max(SHORTEST_IDLE_LIMIT, busy_timeout / 2)
        )
        if synchronous == "NORMAL":
            self._settings["synchronous_commit"] = "off"
        self._statements: dict[str, bytes] = {}  # with the placeholders of the driver
        self._changes = ForeignChanges()
        self._pid = 0
        self._notified = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def transaction(connections: _Connections) -> T:
            try:
                async with connections.driver.transaction():
                    return await work(connections.sql)
            finally:
                await connections.sql.rollback()

        return await self._shielded(transaction)

    async def run(self, *statements: Statement, queue: str | None = None, shielded: bool = True) -> list[list[Any]]:
        lock = [(_LOCK_QUEUE, {"queue": queue})] if queue is not None else []

        async def execute(connections: _Connections) -> list[list[Any]]:
            driver = connections.driver
            if len(statements) == 1 and not lock:
                return [await self._rows(driver, *statements[0])]
            async with driver.transaction():
                rows = [await self._rows(driver, *statement) for statement in (*lock, *statements)]
            return rows[len(lock) :]

        return await (self._shielded(execute) if shielded else self._locked(execute))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def ask(connections: _Connections) -> T:
            try:
                return await work(connections.sql)
            finally:
                await connections.sql.rollback()

        return await self._shielded(ask)

    @property
    def is_shared(self) -> bool:
        return True

    async def wait_for_change(self, seconds: float) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._notified.wait(), seconds)
        await asyncio.sleep(CHANGE_PAUSE)
        self._notified.clear()

    async def _listen(self) -> None:
        """Receive notifications as they arrive: the other connection receives them only when it is used."""
        with suppress(psycopg.Error, DBAPIError):  # the other connection reports it, and the next wait tries again
            async with self._engine.connect() as sql:
                driver = _driver(await sql.get_raw_connection())
                await driver.execute(f"LISTEN {CHANNEL}")
                async for notify in driver.notifies():
                    if notify.pid != self._pid:
                        self._notified.set()

    @property
    def log_bytes(self) -> int:
        return 0  # PostgreSQL limits its log by itself

    async def ping(self) -> None:
        await self.run(("SELECT", {}))

    async def changes(self) -> Changes:
        await self.ping()  # receives the notifications that have been sent
        return self._changes.take()

    async def measure_log(self) -> int:
        return 0

    async def shrink_log(self) -> bool:
        return True

    async def close(self) -> None:
        if self._listener:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        await super().close()

    async def _connect(self) -> _Connections:
        sql = await self._engine.connect()
        driver = _driver(await sql.get_raw_connection())
        try:
            await self._prepare(driver)
        except BaseException:
            await sql.close()
            raise
        return _Connections(sql, driver)

    async def _prepare(self, driver: psycopg.AsyncConnection[Any]) -> None:
        """Set a connection up. Raises `DatabaseError` if the database cannot be used with it."""
        [(pid,)] = await self._rows(driver, "SELECT pg_backend_pid()", {})
        require_usable(driver.info, pid)
        driver.adapters.register_dumper(str, TextDumper)
        for name, value in self._settings.items():
            await self._rows(driver, "SELECT set_config(:name, :value, false)", {"name": name, "value": value})
        [(is_shared,)] = await self._rows(driver, f"SELECT pg_try_advisory_lock_shared({SERVERS})", {})
        if not is_shared:
            raise DatabaseError("the database is being copied")
        self._pid = pid

        def receive(notify: psycopg.Notify) -> None:
            if notify.pid != pid:
                self._changes.add(notify.payload)

        driver.add_notify_handler(receive)
        await driver.execute(f"LISTEN {CHANNEL}")
        self._changes.add_any()  # until now, nothing has listened

    async def _rows(self, driver: psycopg.AsyncConnection[Any], statement: str, values: dict[str, Any]) -> list[Any]:
        if statement not in self._statements:
            self._statements[statement] = str(text(statement).compile(dialect=self._engine.dialect)).encode()
        stored = {name: as_json(value) if isinstance(value, list) else value for name, value in values.items()}
        cursor = await driver.execute(self._statements[statement], stored)
        return await cursor.fetchall() if cursor.description else []

    async def _disconnect(self, connection: _Connections) -> None:
        await connection.sql.invalidate()
        await connection.sql.close()

    def _is_lost(self, connection: _Connections) -> bool:
        return connection.driver.closed

    def _explained(self, error: BaseException) -> DatabaseError:
        if isinstance(error, LockNotAvailable):
            return DatabaseError("database is locked: another program does not end its transaction")
        message, *_ = str(error).splitlines() or [type(error).__name__]
        return (Deadlock if isinstance(error, DeadlockDetected) else DatabaseError)(message)

    async def _locked(self, work: Callable[[_Connections], Awaitable[T]]) -> T:
        for _ in range(DEADLOCK_TRIES - 1):
            with suppress(Deadlock):
                return await super()._locked(work)
        return await super()._locked(work)


def _driver(raw: PoolProxiedConnection) -> psycopg.AsyncConnection[Any]:
    driver = raw.driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise TypeError(f"the driver is {type(driver).__name__}, not psycopg")
    return driver


def _create_engine(url: URL, seconds: int) -> AsyncEngine:
    """Connections that notice within so many seconds that the server is lost, unless the URL says something else."""
    limits = {"connect_timeout": seconds, "tcp_user_timeout": seconds * 1000}
    limits |= {"keepalives_idle": seconds, "keepalives_interval": _interval(seconds)}
    options = {"fallback_application_name": "neops-remote-lab", "client_encoding": "utf8", **limits}
    arguments = {name: value for name, value in options.items() if name not in url.query}
    return create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments)


def _limits(seconds: int, idle: float) -> dict[str, str]:
    """Settings with which PostgreSQL notices that a server is suspended or cut off.

    Otherwise a transaction of such a server would keep the queue locked, and its connections would stay open for hours.

    Args:
        seconds: until an idle connection is probed.
        idle: seconds without a statement after which a transaction is rolled back.
    """
    return {
        "idle_in_transaction_session_timeout": f"{int(idle * 1000)}ms",
        "tcp_keepalives_idle": str(seconds),
        "tcp_keepalives_interval": str(_interval(seconds)),
        "tcp_keepalives_count": str(KEEPALIVES),
    }


def _interval(seconds: int) -> int:
    return max(1, seconds // KEEPALIVES)
