"""Alembic environment: one transaction per upgrade, in batch mode, with the naming convention of the tables."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine, event, pool

from neops_remote_lab.store.sql.tables import METADATA

url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
engine = create_engine(str(url), poolclass=pool.NullPool)

if engine.dialect.name == "sqlite":
    # SQLite can roll back a CREATE TABLE, but its driver begins no transaction for it: a server killed during an
    # upgrade would leave a half-upgraded database.
    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _record: Any) -> None:
        """Disable the driver's implicit transactions."""
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        """Begin a transaction that also covers DDL statements."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")


with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        if engine.dialect.name == "postgresql":  # one server at a time
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('neops-remote-lab alembic'))")
        context.run_migrations()
engine.dispose()
