"""Copies a database that no server uses into an empty one, in one transaction."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Final

from sqlalchemy import Connection, Table, delete, exists, insert, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from neops_remote_lab.core import file_modes
from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.migrate import HEAD, migrate, revision
from neops_remote_lab.store.sql.tables import METADATA, QUEUE

_BATCH: Final = 1000
"""Number of rows that are read and written at once."""


class OfflineDatabase(ABC):
    """A database that no server uses, in a transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @abstractmethod
    def disable_triggers(self) -> None:
        """Let no trigger run until `enable_triggers`."""

    @abstractmethod
    def enable_triggers(self) -> None:
        """Undo `disable_triggers`."""

    @abstractmethod
    def last_number(self, table: str) -> int:
        """The last number that a row of a table got, even if the row was deleted; 0 if there was none."""

    @abstractmethod
    def set_last_number(self, table: str, number: int) -> None:
        """Let the next row of a table get a larger number."""


class InUse(RuntimeError):
    """A server or another program uses the database."""

    def __init__(self, url: URL) -> None:
        super().__init__(f"another program uses the database {urls.shown(url)}: stop the server first")


def copy(source: str, target: str) -> dict[str, int]:
    """Copy a database, and create the tables of the target. Both are named as `--database` does.

    Returns the number of rows by table.

    Raises:
        ValueError: a name is wrong.
        RuntimeError: a server uses one of the databases, the target is not empty, or the source does not have the
            schema of this version.
        DatabaseError: a database cannot be used, or the target refuses a row.
        OSError: the file of the target cannot be created.
    """
    from_url, to_url = urls.parse(source), urls.parse(target)
    file = urls.sqlite_file(from_url)
    if file and not file.is_file():
        raise RuntimeError(f"there is no database {file}")
    try:
        if (found := revision(from_url)) != HEAD:
            raise RuntimeError(
                f"the database {urls.shown(from_url)} has schema {found or 'none'} instead of {HEAD}: "
                "start and stop the server of this version with it first, which upgrades it"
            )
        with _exclusive(from_url) as reader:
            if file := urls.sqlite_file(to_url):
                file_modes.make_database(file)
            migrate(target)
            with _exclusive(to_url) as writer:
                _require_empty(writer.connection, to_url)
                writer.disable_triggers()
                copied = {table.name: _copy_table(table, reader, writer) for table in METADATA.sorted_tables}
                writer.enable_triggers()
                return copied
    except DBAPIError as error:
        raise DatabaseError(str(error.orig)) from error


def _exclusive(url: URL) -> AbstractContextManager[OfflineDatabase]:
    """Open a database, which no server can use meanwhile. Raises `InUse`."""
    if urls.sqlite_file(url):
        from neops_remote_lab.store.sqlite import offline as sqlite  # noqa: PLC0415 - imports this module

        return sqlite.exclusive(url)

    from neops_remote_lab.store.postgresql import offline as postgresql  # noqa: PLC0415 - needs the extra

    return postgresql.exclusive(url)


def _require_empty(connection: Connection, target: URL) -> None:
    connection.execute(delete(QUEUE).where(QUEUE.c.last_rank == 0))  # the row that the migration creates
    for table in METADATA.sorted_tables:
        if connection.execute(select(exists(select(table)))).scalar_one():
            raise RuntimeError(f"the database {urls.shown(target)} is not empty: it has rows in the table {table.name}")


def _copy_table(table: Table, reader: OfflineDatabase, writer: OfflineDatabase) -> int:
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=_BATCH)
    count = 0
    for rows in reader.connection.execute(query).mappings().partitions():
        writer.connection.execute(insert(table), [dict(row) for row in rows])
        count += len(rows)
    if "number" in table.primary_key.columns:
        writer.set_last_number(table.name, reader.last_number(table.name))
    return count
