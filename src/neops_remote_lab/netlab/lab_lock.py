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
        self._labs = 0

    def acquire(self) -> None:
        """Reserve the host for one more lab of this process. Never waits for another process's lab.

        Raises:
            LabInTheWay: another process holds the lock.
        """
        with self._guard:
            if not self._labs:
                self._lock_host()
            self._labs += 1

    def _lock_host(self) -> None:
        try:
            self._lock.acquire()
        except Timeout as busy:
            raise LabInTheWay(_holder(busy.lock_file)) from None
        with suppress(OSError):  # the note is only for messages
            self._lock.write_note(json.dumps(ownership.origin() | {"pid": os.getpid()}))

    def release(self) -> None:
        """Give one reservation back."""
        with self._guard:
            self._labs -= 1
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
