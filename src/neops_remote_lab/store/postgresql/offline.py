"""A PostgreSQL database that no server uses, for copying."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.engine import URL

from neops_remote_lab.store.postgresql.database import SERVERS
from neops_remote_lab.store.postgresql.values import TextDumper
from neops_remote_lab.store.sql.copying import InUse, OfflineDatabase
from neops_remote_lab.store.sql.tables import METADATA


class OfflinePostgresql(OfflineDatabase):
    """A database in a transaction."""

    def disable_triggers(self) -> None:
        self._alter("DISABLE TRIGGER USER")

    def enable_triggers(self) -> None:
        self._alter("ENABLE TRIGGER USER")

    def _alter(self, action: str) -> None:
        for table in METADATA.sorted_tables:
            self.connection.exec_driver_sql(f"ALTER TABLE {table.name} {action}")

    def last_number(self, table: str) -> int:
        query = f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {table}_number_seq"
        return int(self.connection.exec_driver_sql(query).scalar_one())

    def set_last_number(self, table: str, number: int) -> None:
        statement = text(f"SELECT setval('{table}_number_seq', :number) WHERE :number > 0")
        self.connection.execute(statement, {"number": number})


@contextmanager
def exclusive(url: URL) -> Iterator[OfflineDatabase]:
    """Open a database that no server uses. Raises `InUse`."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="REPEATABLE READ")

    @event.listens_for(engine, "connect")
    def adapt(driver: psycopg.Connection[Any], _record: object) -> None:
        driver.adapters.register_dumper(str, TextDumper)

    with engine.begin() as connection:
        if not connection.execute(text(f"SELECT pg_try_advisory_xact_lock({SERVERS})")).scalar_one():
            raise InUse(url)
        yield OfflinePostgresql(connection)
