"""Permissions of the database and the work directory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CONTENT_UMASK: Final = 0o022
"""The umask of the server and its child processes. Lab files are mounted into containers, where processes of other
users must be able to read them. On the host, the mode of the work directory keeps other users out."""

LOCK_SUFFIX: Final = ".lock"
"""Ending of the name of the lock file beside a database file."""


def make_database(file: Path) -> None:
    """Create the database file if it does not exist, with mode 600 until `limit_database` sets the configured mode.

    Raises:
        OSError: the file cannot be created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def limit_database(file: Path, umask: int) -> None:
    """Set the mode of a database file, and of its lock file, according to a umask.

    SQLite copies that mode to new `-wal` and `-shm` files.
    """
    for name in ("", "-wal", "-shm", LOCK_SUFFIX):
        _limit(file.with_name(file.name + name), 0o666 & ~umask)


def limit_directory(directory: Path, umask: int) -> None:
    """Set the mode of a directory according to a umask."""
    _limit(directory, 0o777 & ~umask)


def _limit(path: Path, mode: int) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_uid == os.geteuid():  # chmod fails on another user's file
            path.chmod(mode)
