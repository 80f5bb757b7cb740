"""A lock for containerlab: versions before 0.76 fail, and may empty `/etc/hosts`, when several of them work at once."""

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from neops_remote_lab.core.host_locks import PREFIX
from neops_remote_lab.netlab.process import find_command, run_docker
from neops_remote_lab.netlab.settings import NetlabSettings

CONTAINERLAB: Final = "containerlab"
FLOCK: Final = "flock"
"""The command with which netlab's multilab plugin takes the lock."""
WITHOUT_LOCK: Final = (0, 76)
"""The first version of containerlab whose commands may run at the same time."""
_VERSION: Final = re.compile(r"^\s*version:\s*v?(\d+)\.(\d+)", re.MULTILINE)


class ProviderLock:
    """The lock that is held while containerlab, or a forced teardown, changes the host."""

    def __init__(self, settings: NetlabSettings) -> None:
        self._settings = settings
        # One file per user: in a sticky directory, a user cannot open the files of another to lock them.
        self._file = settings.lock_dir / f"{PREFIX}provider.{os.geteuid()}.lock"
        self._guard = threading.Lock()
        self._needed: bool | None = None

    @property
    def path(self) -> Path | None:
        """The file to lock; None if there is one lab at a time, or if containerlab needs no lock. May block."""
        if not self._settings.several_labs:
            return None
        with self._guard:
            if self._needed is None:
                self._needed = self._is_old()
        return self._file.resolve() if self._needed else None

    def _is_old(self) -> bool:
        """Whether containerlab is older than the first version without the fault, or does not tell its version."""
        if find_command(CONTAINERLAB) is None:
            return True
        try:
            printed = run_docker(["version"], command=CONTAINERLAB, timeout=self._settings.command_timeout)
        except (subprocess.SubprocessError, OSError):
            return True
        found = _VERSION.search(printed)
        return found is None or (int(found[1]), int(found[2])) < WITHOUT_LOCK

    def problem(self) -> str | None:
        """Why labs cannot run at the same time on this host; None if they can. May block."""
        if (path := self.path) is None:
            return None
        old = f"{CONTAINERLAB} older than {'.'.join(map(str, WITHOUT_LOCK))} needs a lock to run several labs"
        if find_command(FLOCK) is None:
            return f"{old}, and the command {FLOCK} (util-linux) is missing. Install it, or a newer {CONTAINERLAB}"
        if shlex.quote(str(path)) != str(path) or "=" in str(path):
            return f"{old}, and netlab cannot lock {path} because of its name. Name another directory with --lock-dir"
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock, if one is needed, while the provider's objects are changed without netlab.

        Raises:
            subprocess.SubprocessError: another lab has held the lock for too long.
        """
        if (path := self.path) is None:
            yield
            return
        lock = FileLock(path, thread_local=False, mode=0o644)
        try:
            lock.acquire(timeout=self._settings.down_timeout)
        except Timeout:
            raise subprocess.SubprocessError("another lab has held the lock of containerlab for too long") from None
        try:
            yield
        finally:
            lock.release()
