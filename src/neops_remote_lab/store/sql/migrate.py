"""Creates a database, or upgrades it to the schema of this version."""

from pathlib import Path

from sqlalchemy import Connection, NullPool, create_engine, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.sql import urls

HEAD = "0001"
"""The newest revision in `alembic/versions`. A test compares the two."""


def migrate(database: str) -> None:
    """Create or upgrade a database, named as `--database` does.

    Raises:
        ValueError: it names no database.
        RuntimeError: the database is newer than this version, or is not a database of this program.
        DatabaseError: the database cannot be opened, read or written.
    """
    url = urls.parse(database)
    if file := urls.sqlite_file(url):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        _migrate(url)
    except DBAPIError as error:
        raise DatabaseError(str(error.orig)) from error


def revision(url: URL) -> str | None:
    """The revision of a database; None if it is empty.

    Raises:
        RuntimeError: it is not a database of this program.
        DatabaseError: the server could not use it.
    """
    engine = create_engine(synchronous(url), poolclass=NullPool)
    with engine.connect() as connection:
        if url.drivername == urls.POSTGRESQL:
            _require_usable(connection)
        tables = inspect(connection).get_table_names()
        if "alembic_version" in tables:
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if tables:
        raise RuntimeError(
            f"{urls.shown(url)} is not a database of neops-remote-lab: it has the table {min(tables)}. "
            "Name another one with --database"
        )
    return None


def _require_usable(connection: Connection) -> None:
    from neops_remote_lab.store.postgresql.requirements import require_usable  # noqa: PLC0415 - needs the extra

    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    require_usable(connection.connection.driver_connection.info, pid)  # type: ignore[union-attr]


def synchronous(url: URL) -> URL:
    """The URL of the same database with a driver that needs no event loop."""
    return url.set(drivername="sqlite") if url.drivername == urls.SQLITE else url


def _migrate(url: URL) -> None:
    found = revision(url)
    if found == HEAD:
        return  # importing alembic is slow

    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", synchronous(url).render_as_string(False).replace("%", "%%"))
    if found is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(found)
        except CommandError:
            raise RuntimeError(
                f"the database {urls.shown(url)} has schema {found}, which this version does not know: "
                "it was created by a newer one. Install that version again, or name another one with --database"
            ) from None
    command.upgrade(config, "head")


def _scripts() -> Path:
    packed = Path(__file__).with_name("alembic")  # in a wheel; in a checkout it is at the top level
    return packed if packed.is_dir() else Path(__file__).parents[4] / "alembic"
