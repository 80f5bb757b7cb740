"""Locks shared by all users of a host, each with a note that says who holds it.

Every user may create files in the lock directory, so its content is not trusted. Each user locks a file of its own, and
a lock is free when no user's file is locked. The directory must prevent users from removing each other's files: a user
who can remove a lock file can lock a new one while the first is still held. Only regular files are opened, and symbolic
links are not followed.
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
"""Prefix of our file names: the directory is usually shared with other programs."""
SHARED_DIRECTORY: Final = 0o1777
PARENT_DIRECTORY: Final = 0o755
FILE: Final = 0o644
NOTE_BYTES: Final = 4096
"""Maximum size of a note; the rest is not read."""
TURN_TIMEOUT: Final = 5.0
"""Seconds to wait while another process checks a lock. A check takes milliseconds."""
TURN_POLL: Final = 0.01
POLL: Final = 0.05
"""Seconds between two attempts to acquire a lock that somebody holds."""


class HostLock:
    """A lock shared by all users of the host. Any thread may release it, not only the one that acquired it."""

    def __init__(self, directory: Path, name: str) -> None:
        """Prepare the lock `name` without acquiring it. Lock files are never deleted.

        Raises:
            OSError: the directory cannot be trusted or used.
        """
        _prepare(directory)
        self._directory = directory
        self._name = name
        # One file per user: in a sticky directory, users cannot replace each other's files.
        stem = f"{PREFIX}{name}.{os.geteuid()}"
        self._file = directory / f"{stem}.lock"
        self._note = directory / f"{stem}.json"
        self._lock = FileLock(self._file, thread_local=False, mode=FILE)

    def acquire(self, timeout: float = 0) -> None:
        """Acquire the lock, within `timeout` seconds.

        Raises:
            Timeout: a process of any user holds the lock; the attribute `lock_file` names the locked file.
            OSError: the lock file of this user cannot be trusted or used.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._acquire_now()
            except Timeout:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(POLL)

    def _acquire_now(self) -> None:
        with _turn(self._directory):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(self._file.lstat().st_mode):
                    raise PermissionError(f"{self._file} is not a regular file: another user put it there")
            self._lock.acquire(blocking=False)
            for other in self._directory.glob(f"{PREFIX}{self._name}.*.lock"):
                if other != self._file and _is_held(other):
                    self._lock.release()
                    raise Timeout(str(other))

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def write_note(self, text: str) -> None:
        """Write a note that says who holds the lock. The caller must hold it.

        Raises:
            OSError: the note cannot be written. An earlier note is kept.
        """
        atomic_files.replace(self._note, text, FILE)

    def remove_note(self) -> None:
        """Remove the note of this user, if there is one."""
        with suppress(OSError):
            self._note.unlink()


def read_note(lock_file: str) -> str | None:
    """The note of the process that holds a lock file; None if there is no readable note."""
    with suppress(OSError, UnicodeDecodeError), _opened(Path(lock_file).with_suffix(".json")) as descriptor:
        return os.read(descriptor, NOTE_BYTES).decode()
    return None


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Let one process at a time check locks: a check briefly locks each file, which another check would see as held."""
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
    """Whether a lock file is locked. A file not owned by the user in its name does not count."""
    with suppress(OSError), _opened(path) as descriptor:
        genuine = path.name.split(".")[-2] == str(os.fstat(descriptor).st_uid)
        return genuine and not _lock(descriptor, fcntl.LOCK_SH)
    return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a regular file, opened without blocking, because the path may be a named pipe."""
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
    """Create the directory, or check that the existing one can be trusted."""
    if not os.path.lexists(directory):
        _make(directory)
    _require_trusted(directory, directory.lstat())
    found = directory.stat()  # the target, if the path is a symbolic link
    _require_trusted(directory, found)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{directory} is not a directory")
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not found.st_mode & stat.S_ISVTX:
        if found.st_uid != os.geteuid():
            raise PermissionError(f"{directory} has no sticky bit, so users can remove each other's locks")
        directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_ISVTX)


def _require_trusted(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise PermissionError(
            f"{path} belongs to the user with id {found.st_uid}, who could remove the lock of a running server: "
            "let root own it"
        )


def _make(directory: Path) -> None:
    """Create a directory and its parents with modes that let other users in, regardless of the umask."""
    missing = [directory, *(parent for parent in directory.parents if not parent.exists())]
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process created it meanwhile
            path.mkdir()
            path.chmod(SHARED_DIRECTORY if path == directory else PARENT_DIRECTORY)
