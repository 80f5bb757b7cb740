"""Parses what `--database` names: a SQLite file, or an SQLAlchemy URL."""

import importlib.util
import re
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

SQLITE: Final = "sqlite+aiosqlite"
POSTGRESQL: Final = "postgresql+psycopg"
_PASSWORD: Final = re.compile(r"(?<=://)([^:@/]*):.*@")


def parse(database: str) -> URL:
    """The URL of a database.

    Args:
        database: the absolute path of a SQLite file, or the URL of a SQLite file or of a PostgreSQL database.

    Raises:
        ValueError: it is neither, or its driver is not installed. The message contains no password.
    """
    if database.startswith("/"):
        return URL.create(SQLITE, database=database)
    try:
        url = make_url(database)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        url = None
    if url is None or url.drivername not in {SQLITE, POSTGRESQL} or not url.database:
        masked = _PASSWORD.sub(r"\1:***@", database)
        raise ValueError(
            f"--database must be the absolute path of a SQLite file, or a URL like {SQLITE}:////directory/file.sqlite3 "
            f"or {POSTGRESQL}://user@host/database, not {masked}"
        )
    if url.drivername == POSTGRESQL and importlib.util.find_spec("psycopg") is None:
        raise ValueError("psycopg is not installed: install neops-remote-lab[postgresql]")
    return url


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; None for another database."""
    return Path(url.database or "") if url.drivername == SQLITE else None


def shown(url: URL) -> str:
    """A database as logs and messages name it: the path of its file, or its URL without the password."""
    return str(sqlite_file(url) or url.render_as_string(hide_password=True))
