"""How alembic reaches the database: one transaction an upgrade, batch mode, the names of the tables' convention."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine, event, pool

from neops_remote_lab.store.sqlite.tables import METADATA

url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
engine = create_engine(str(url), poolclass=pool.NullPool)


# SQLite can take back a CREATE TABLE, but its driver begins no transaction for one: a server that is killed in the
# middle of an upgrade would leave a database that is neither old nor new.
@event.listens_for(engine, "connect")
def leave_transactions_to_us(connection: Any, _record: Any) -> None:
    """Switch the driver's own transactions off."""
    connection.isolation_level = None


@event.listens_for(engine, "begin")
def begin(connection: Any) -> None:
    """Begin a transaction that holds whatever is in it."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
