"""Stores for tests, and rows to put into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.store.opening import Stores
from neops_remote_lab.store.protocol import LabStore, SessionStore
from neops_remote_lab.store.rows import DEFAULT_QUEUE, FIRST_SLOT, Joining, Lab
from neops_remote_lab.store.settings import StoreSettings
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.migrate import migrate

HOST: Final = "lab-7"
NOON: Final = datetime(2026, 5, 1, 12, tzinfo=UTC)
BUSY_TIMEOUT: Final = 0.2


class NewDatabase(Protocol):
    """Creates a database without sessions, in `directory` if it is a file. Yields its URL."""

    def __call__(self, directory: Path, /, *, with_tables: bool = True) -> AbstractContextManager[str]: ...


class OpenStores(Stores):
    """Stores with defaults for the host, the queue and the slot."""

    def sessions(self, host: str = HOST, queue: str = DEFAULT_QUEUE) -> SessionStore:
        return super().sessions(host, queue)

    def labs(self, host: str = HOST, slot: int = FIRST_SLOT) -> LabStore:
        return super().labs(host, slot)


def sqlite_url(file: Path) -> str:
    """The value of `--database` for a SQLite file."""
    return f"{urls.SQLITE}:///{file}"


@contextmanager
def new_sqlite_file(directory: Path, *, with_tables: bool = True) -> Iterator[str]:
    """Create a SQLite database. Without tables, the file is not created."""
    url = sqlite_url(directory / "remote-lab.sqlite3")
    if with_tables:
        migrate(url)
    yield url


@asynccontextmanager
async def opened(database: str) -> AsyncIterator[OpenStores]:
    """The stores of a database, by its URL."""
    stores = OpenStores(StoreSettings(database=database, busy_timeout=BUSY_TIMEOUT))
    yield stores
    await stores.database.close()


def joining(name: str, key: str | None = None, now: datetime = NOON) -> Joining:
    """The values of a session that joins."""
    return Joining(name, f"{name}@office", None, key, now)


def lab(name: str, session_id: str = "ann") -> Lab:
    """The row of a starting lab."""
    return Lab(name, session_id, LiveLabState.STARTING, "t.yml", "a" * 64, None, f"/labs/{name}", None)
