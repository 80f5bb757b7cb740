"""Creates a database, or upgrades it to the schema of this version."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from neops_remote_lab.store.sqlite.database import database_url

HEAD = "0001"
"""The newest revision in `alembic/versions`. A test compares the two."""


def migrate(url: str) -> None:
    """Create or upgrade the database behind an SQLAlchemy URL.

    Raises:
        ValueError: `url` is not the URL of a SQLite file.
        RuntimeError: the database is newer than this version, or is not a database of this program.
        sqlite3.Error: the file cannot be opened, read or written.
    """
    parsed = database_url(url)
    Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
    revision = _revision(parsed)
    if revision == HEAD:
        return  # importing alembic is slow

    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", parsed.set(drivername="sqlite").render_as_string(False).replace("%", "%%"))
    if revision is not None:
        try:
            ScriptDirectory.from_config(config).get_revision(revision)
        except CommandError:
            raise RuntimeError(
                f"the database {parsed.database} has schema {revision}, which this version does not know: "
                "it was created by a newer one. Install that version again, or name another file with --database"
            ) from None
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:
        raise error.orig or error from None


def _revision(url: URL) -> str | None:
    with closing(sqlite3.connect(url.database or ":memory:")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "alembic_version" not in tables:
            if tables:
                raise RuntimeError(
                    f"{url.database} is not a database of neops-remote-lab: it has the table {min(tables)}. "
                    "Name another file with --database"
                )
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None


def _scripts() -> Path:
    packed = Path(__file__).with_name("alembic")  # in a wheel; in a checkout it is at the top level
    return packed if packed.is_dir() else Path(__file__).parents[4] / "alembic"
