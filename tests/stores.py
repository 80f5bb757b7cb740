"""Stores for tests: one opener for each database, and rows to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.store.protocol import Database, LabStore, MemoryStore, SessionStore
from neops_remote_lab.store.rows import DEFAULT_QUEUE, FIRST_SLOT, Joining, Lab
from neops_remote_lab.store.sqlite.database import SqliteDatabase
from neops_remote_lab.store.sqlite.labs import SqliteLabStore
from neops_remote_lab.store.sqlite.memory import SqliteMemoryStore
from neops_remote_lab.store.sqlite.migrate import migrate
from neops_remote_lab.store.sqlite.sessions import SqliteSessionStore

HOST: Final = "lab-7"
NOON: Final = datetime(2026, 5, 1, 12, tzinfo=UTC)
BUSY_TIMEOUT: Final = 0.2


class Sessions(Protocol):
    """Makes the store of a host's sessions."""

    def __call__(self, host: str = HOST, queue: str = DEFAULT_QUEUE) -> SessionStore: ...


class Labs(Protocol):
    """Makes the store of the labs of a slot."""

    def __call__(self, host: str = HOST, slot: int = FIRST_SLOT) -> LabStore: ...


@dataclass(frozen=True, slots=True)
class Stores:
    """One connection to a database, and what can be made of it."""

    database: Database
    sessions: Sessions
    labs: Labs
    memory: Callable[[], MemoryStore]


@asynccontextmanager
async def sqlite(directory: Path) -> AsyncIterator[Stores]:
    """The SQLite database in a directory, made where there is none."""
    url = f"sqlite+aiosqlite:///{directory / 'lab.sqlite3'}"
    migrate(url)
    database = SqliteDatabase(url, busy_timeout=BUSY_TIMEOUT)

    def sessions(host: str = HOST, queue: str = DEFAULT_QUEUE) -> SessionStore:
        return SqliteSessionStore(database, host, queue)

    def labs(host: str = HOST, slot: int = FIRST_SLOT) -> LabStore:
        return SqliteLabStore(database, host, slot)

    yield Stores(database, sessions, labs, lambda: SqliteMemoryStore(database))
    await database.close()


OPENERS: Final[Mapping[str, Callable[[Path], AbstractAsyncContextManager[Stores]]]] = {"sqlite": sqlite}
"""By the name of the database. Another one passes `tests/conformance` once it is added here."""


def joining(name: str, key: str | None = None, now: datetime = NOON) -> Joining:
    """Somebody who joins."""
    return Joining(name, f"{name}@office", None, key, now)


def lab(name: str, session_id: str = "ann") -> Lab:
    """A lab that is about to start."""
    return Lab(name, session_id, LiveLabState.STARTING, "t.yml", "a" * 64, None, f"/labs/{name}", None)
