"""Opens the database that the settings name."""

from typing import Any

from neops_remote_lab.store.protocol import Database, LabStore, MemoryStore, SessionStore
from neops_remote_lab.store.rows import DEFAULT_QUEUE, FIRST_SLOT
from neops_remote_lab.store.settings import StoreSettings
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.database import SqlDatabase
from neops_remote_lab.store.sql.fence import Fence
from neops_remote_lab.store.sql.labs import SqlLabStore
from neops_remote_lab.store.sql.memory import SqlMemoryStore
from neops_remote_lab.store.sql.sessions import SqlSessionStore
from neops_remote_lab.store.sqlite.database import SqliteDatabase


class Stores:
    """One connection to a database, and the stores that use it."""

    def __init__(self, settings: StoreSettings) -> None:
        """Connect at the first use. Raises ValueError if the settings name no database."""
        self._database = _database(settings)
        self._fences: dict[str, Fence] = {}

    @property
    def database(self) -> Database:
        """The database of the stores."""
        return self._database

    def sessions(self, host: str, queue: str = DEFAULT_QUEUE) -> SessionStore:
        """The sessions of a queue that a host serves."""
        return SqlSessionStore(self._database, self._fence(host), host, queue)

    def labs(self, host: str, slot: int = FIRST_SLOT) -> LabStore:
        """The labs of a slot of a host."""
        return SqlLabStore(self._database, self._fence(host), host, slot)

    def _fence(self, host: str) -> Fence:
        return self._fences.setdefault(host, Fence(host))

    def memory(self) -> MemoryStore:
        """The memory that labs used."""
        return SqlMemoryStore(self._database)


def _database(settings: StoreSettings) -> SqlDatabase[Any]:
    url = urls.parse(settings.database)
    if urls.sqlite_file(url):
        return SqliteDatabase(url, synchronous=settings.synchronous, busy_timeout=settings.busy_timeout)

    from neops_remote_lab.store.postgresql.database import PostgresqlDatabase  # noqa: PLC0415 - needs the extra

    return PostgresqlDatabase(url, synchronous=settings.synchronous, busy_timeout=settings.busy_timeout)
