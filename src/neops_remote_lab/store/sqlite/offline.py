"""A SQLite database that no server uses, for copying."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from neops_remote_lab.store.sql.copying import InUse, OfflineDatabase
from neops_remote_lab.store.sql.migrate import synchronous


class OfflineSqlite(OfflineDatabase):
    """A database file in a transaction."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._triggers: list[tuple[str, str]] = []

    def disable_triggers(self) -> None:
        found = self.connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
        self._triggers = [(name, statement) for name, statement in found]
        for name, _ in self._triggers:
            self.connection.exec_driver_sql(f"DROP TRIGGER {name}")

    def enable_triggers(self) -> None:
        for _, statement in self._triggers:
            self.connection.exec_driver_sql(statement)

    def last_number(self, table: str) -> int:
        query = text("SELECT seq FROM sqlite_sequence WHERE name = :table")
        return self.connection.execute(query, {"table": table}).scalar() or 0

    def set_last_number(self, table: str, number: int) -> None:
        row = {"table": table, "number": number}
        self.connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :table"), row)
        self.connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :number)"), row)


@contextmanager
def exclusive(url: URL) -> Iterator[OfflineDatabase]:
    """Open a database file that no other program has open. Raises `InUse`."""
    engine = create_engine(synchronous(url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        connection.exec_driver_sql("PRAGMA locking_mode = EXCLUSIVE")  # an open connection counts as a lock
        try:
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        except OperationalError as error:
            raise InUse(url) from error
        yield OfflineSqlite(connection)
        connection.exec_driver_sql("COMMIT")
