"""How alembic reaches the database: one sqlite connection, batch mode, the names of the tables' convention."""

from alembic import context
from sqlalchemy import create_engine, pool

from neops_remote_lab.store.tables import METADATA

url = context.get_x_argument(as_dictionary=True).get("url") or context.config.get_main_option("sqlalchemy.url")
engine = create_engine(url, poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
