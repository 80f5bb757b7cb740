"""Locks that all users of a host share, and notes beside them that say who holds a lock.

Every user may create files in the directory, so nothing in it is trusted. It must be a directory in which users cannot
remove each other's files, and each user has lock files of its own: who may remove a lock file may lock it again while
it is held. A lock is taken when the file of no user is locked. Only regular files are opened, and no symbolic links
are followed.
"""

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from neops_remote_lab.core import atomic_files

PREFIX: Final = "neops-remote-lab-"
"""How the names of our files begin: the directory is usually shared with other programs."""
SHARED_DIRECTORY: Final = 0o1777
PARENT_DIRECTORY: Final = 0o755
FILE: Final = 0o644
NOTE_BYTES: Final = 4096
"""Longest note that is read."""
TURN_TIMEOUT: Final = 5.0
"""Seconds to wait while another process looks who holds a lock, which takes it milliseconds."""
TURN_POLL: Final = 0.01


class HostLock:
    """A lock of the host, shared by all its users. Any thread may release it, whichever took it."""

    def __init__(self, directory: Path, name: str) -> None:
        """The lock `name`, not taken yet. Lock files are never deleted.

        Raises:
            OSError: the directory cannot be trusted or used.
        """
        _prepare(directory)
        self._directory = directory
        self._name = name
        # A file for each user: in a sticky directory nobody can replace the file of another one.
        stem = f"{PREFIX}{name}.{os.geteuid()}"
        self._file = directory / f"{stem}.lock"
        self._note = directory / f"{stem}.json"
        self._lock = FileLock(self._file, thread_local=False, mode=FILE)

    def acquire(self) -> None:
        """Take the lock, at once or not at all.

        Raises:
            Timeout: a process of any user of the host holds it, in the file `lock_file`.
            OSError: the lock file of this user cannot be trusted or used.
        """
        with _turn(self._directory):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(self._file.lstat().st_mode):
                    raise PermissionError(f"{self._file} is not a regular file: somebody else has put it there")
            self._lock.acquire(blocking=False)
            for other in self._directory.glob(f"{PREFIX}{self._name}.*.lock"):
                if other != self._file and _is_held(other):
                    self._lock.release()
                    raise Timeout(str(other))

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def write_note(self, text: str) -> None:
        """Say who holds the lock, which the caller does.

        Raises:
            OSError: it cannot be written; an earlier note is left as it was.
        """
        atomic_files.replace(self._note, text, FILE)

    def remove_note(self) -> None:
        """Remove the note of this user, if there is one."""
        with suppress(OSError):
            self._note.unlink()


def read_note(lock_file: str) -> str | None:
    """The note of the process that has locked a file; None where there is none that can be read."""
    with suppress(OSError, UnicodeDecodeError), _opened(Path(lock_file).with_suffix(".json")) as descriptor:
        return os.read(descriptor, NOTE_BYTES).decode()
    return None


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Be the only process that looks who holds a lock: looking locks a file for a moment."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + TURN_TIMEOUT
        while not _lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise Timeout(str(directory))
            time.sleep(TURN_POLL)
        yield
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    """Whether the user named in a lock file has locked it. A file that belongs to somebody else says nothing."""
    with suppress(OSError), _opened(path) as descriptor:
        genuine = path.name.split(".")[-2] == str(os.fstat(descriptor).st_uid)
        return genuine and not _lock(descriptor, fcntl.LOCK_SH)
    return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a regular file. Opening does not wait: it may be a named pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare(directory: Path) -> None:
    """Make the directory, or check that the one that is there can be trusted."""
    if not os.path.lexists(directory):
        _make(directory)
    _require_trusted(directory, directory.lstat())
    found = directory.stat()  # of what a trusted link leads to
    _require_trusted(directory, found)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{directory} is not a directory")
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not found.st_mode & stat.S_ISVTX:
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{directory} has no sticky bit, so that users can remove each other's locks")
        directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_ISVTX)


def _require_trusted(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise PermissionError(
            f"{path} belongs to the user with id {found.st_uid}, who could remove the lock of a running server: "
            "let root own it"
        )


def _make(directory: Path) -> None:
    """Make a directory and its parents so that other users reach it, whatever the umask."""
    missing = [directory, *(parent for parent in directory.parents if not parent.exists())]
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            path.mkdir()
            path.chmod(SHARED_DIRECTORY if path == directory else PARENT_DIRECTORY)
