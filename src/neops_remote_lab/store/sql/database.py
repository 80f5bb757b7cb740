"""What the connections to all databases share: one at a time uses the connection, and is not interrupted."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from neops_remote_lab.store.protocol import Database, DatabaseError
from neops_remote_lab.store.sql.dialect import Dialect

T = TypeVar("T")
Connection = TypeVar("Connection")

Statement: TypeAlias = tuple[str, dict[str, Any]]
"""Plain SQL with named parameters (`:name`), and their values. Times are aware datetimes, and a list becomes JSON with
times in UTC."""


class SqlDatabase(Database, ABC, Generic[Connection]):
    """A database that is used through one connection, so that work is committed in the order in which it ends.

    `C` is that connection.
    """

    dialect: ClassVar[Dialect]

    def __init__(self, engine: AsyncEngine, driver_errors: type[Exception]) -> None:
        """Connect at the first use. `driver_errors` is the base class of the exceptions of the driver."""
        self._engine = engine
        self._driver_errors = driver_errors
        self._open: Connection | None = None
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    @abstractmethod
    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` in one transaction, which is durable when this returns."""

    @abstractmethod
    async def run(self, *statements: Statement, queue: str | None = None, shielded: bool = True) -> list[list[Any]]:
        """Run SQL statements in one durable transaction. Returns the rows of each statement.

        For the hot path: the driver executes the statements directly.

        Args:
            statements: what to run.
            queue: let no other transaction that names this queue run until this one has ended.
            shielded: protect the transaction from cancellation of the caller. False saves a task if the caller cannot
                be cancelled.
        """

    @abstractmethod
    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, a single statement that must not write, outside a transaction."""

    @abstractmethod
    async def _connect(self) -> Connection: ...

    @abstractmethod
    async def _disconnect(self, connection: Connection) -> None: ...

    def _is_lost(self, connection: Connection) -> bool:  # noqa: ARG002
        """Whether a connection cannot be used any more after an error."""
        return False

    def _explained(self, error: BaseException) -> DatabaseError:
        """What an error of the driver means."""
        return DatabaseError(str(error))

    async def close(self) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)
        async with self._lock:
            if self._open:
                await self._disconnect(self._open)
        await self._engine.dispose()

    async def _shielded(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run work to its end even if the caller is cancelled, so that no transaction stays open."""
        task = asyncio.create_task(self._locked(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _locked(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._lock:
            try:
                if self._open is None:
                    self._open = await self._connect()
                return await work(self._open)
            except DBAPIError as error:
                await self._forget_lost()
                raise self._explained(error.orig or error) from error
            except self._driver_errors as error:
                await self._forget_lost()
                raise self._explained(error) from error

    async def _forget_lost(self) -> None:
        if self._open and self._is_lost(self._open):
            lost, self._open = self._open, None
            await self._disconnect(lost)
