"""The host lock that says that a process has labs."""

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import Timeout

from neops_remote_lab.core.host_locks import HostLock, read_note
from neops_remote_lab.core.text import one_line
from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.failures import LabInTheWay

LAB_LOCK: Final = "lab"
"""Name of the host lock that is held from before a lab's start until nothing is left of it."""


class LabLock:
    """The host lock, shared by all labs of this process: held from the first reservation to the last release.

    A server with several labs excludes other processes as a server with one lab does.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` contains the host's lock files."""
        self._lock = HostLock(directory, LAB_LOCK)
        self._guard = threading.Lock()
        self._labs: set[Path] = set()
        self._expected: set[Path] = set()

    @property
    def holders(self) -> frozenset[Path]:
        """The directories of the labs that hold the lock."""
        with self._guard:
            return frozenset(self._labs)

    @property
    def labs(self) -> frozenset[Path]:
        """The directories of the labs of this process: those that hold the lock, and those to be adopted."""
        with self._guard:
            return frozenset(self._labs | self._expected)

    def expect(self, base: Path) -> None:
        """Count a lab as one of this process, although it does not hold the lock yet."""
        with self._guard:
            self._expected.add(base)

    def acquire(self, base: Path) -> None:
        """Reserve the host for a lab of this process. Never waits for another process's lab.

        Args:
            base: the lab's directory.

        Raises:
            LabInTheWay: another process holds the lock.
        """
        with self._guard:
            if not self._labs:
                self._lock_host()
            self._labs.add(base)

    def _lock_host(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as busy:
            raise LabInTheWay(_holder(busy.lock_file)) from None
        with suppress(OSError):  # the note is only for messages
            self._lock.write_note(json.dumps(ownership.origin() | {"pid": os.getpid()}))

    def release(self, base: Path) -> None:
        """Give the reservation of a lab back."""
        with self._guard:
            self._labs.discard(base)
            self._expected.discard(base)
            if not self._labs:
                self._lock.remove_note()
                self._lock.release()


def _holder(lock_file: str) -> str:
    """A message that names the process which holds the lock of this host's lab."""
    try:
        note = json.loads(read_note(lock_file) or "")
        holder = "pid {pid} of user {user}, since {created}".format(**note)
    except (ValueError, LookupError, TypeError):
        holder = "unknown, because its note cannot be read"
    return f"another process of this host holds its lab: {one_line(holder)}"
