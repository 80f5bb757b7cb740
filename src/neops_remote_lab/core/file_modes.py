"""Who may read what the server writes: its database and its work directory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

CONTENT_UMASK: Final = 0o022
"""The umask of the server and of the commands that it starts. Files of a lab are mounted into its containers, whose
programs run as other users, so these must be able to read them; on the host the directory above keeps others out."""


def make_database(file: Path) -> None:
    """Make the file of a database where there is none, readable by nobody else before its mode is known.

    Raises:
        OSError: it cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def limit_database(file: Path, umask: int) -> None:
    """Let only those read a database whom the umask allows. SQLite gives that mode to `-wal` and `-shm` files, too."""
    for name in ("", "-wal", "-shm"):
        _limit(file.with_name(file.name + name), 0o666 & ~umask)


def limit_directory(directory: Path, umask: int) -> None:
    """Let only those enter a directory whom the umask allows."""
    _limit(directory, 0o777 & ~umask)


def _limit(path: Path, mode: int) -> None:
    with suppress(FileNotFoundError):
        if path.stat().st_uid == os.geteuid():  # what somebody else has made keeps the mode that it was given
            path.chmod(mode)
