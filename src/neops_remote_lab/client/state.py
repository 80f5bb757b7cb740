"""Sessions that outlive the process that opened them, saved in the user's state directory.

Each server and name has a file `sessions/NAME-DIGEST.json` with a `KeptSession`; DIGEST is that of the server's
address. Only the user may read it, because a session id gives access to the lab. The lock and the log of the process
that keeps the session alive (`neops_remote_lab.client.keeper`) are beside it.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Self

import psutil
from filelock import FileLock
from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.core import atomic_files

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

DEFAULT_NAME: Final = "default"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DIRECTORY_MODE: Final = 0o700
_DIGEST_LENGTH: Final = 12
_SAME_START: Final = 1.0
"""Maximum difference, in seconds, between two readings of one process's start time."""


class ProcessRecord(BaseModel):
    """A process of this machine, identified by pid and start time, because pids are reused."""

    model_config = ConfigDict(frozen=True)

    pid: int = Field(gt=0)
    started: float = Field(description="seconds since 1970")

    @classmethod
    def of(cls, pid: int | None = None) -> Self:
        """The record of a running process; by default, of this one."""
        process = psutil.Process(pid)
        return cls(pid=process.pid, started=process.create_time())

    def find(self) -> psutil.Process | None:
        """The process, if it is still running. After a change of the system clock it may not be found."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < _SAME_START
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


class KeptSession(BaseModel):
    """An active session, with everything that later commands need to use and end it."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    url: str = Field(description="address of the server, without credentials")
    name: str = Field(default=DEFAULT_NAME, description="which of the user's sessions with this server it is")
    session_id: str = Field(repr=False)
    topology: str | None = Field(default=None, description="path of the topology file whose lab runs")
    origin: Literal["up", "pytest"] = "up"
    kept_since: datetime
    kept_until: datetime | None = Field(default=None, description="when the session is ended at the latest")
    yields: bool = Field(default=False, description="it is ended as soon as another session waits")
    keeper: ProcessRecord | None = Field(default=None, description="the process that keeps the session alive")


class StateDirectory:
    """The saved sessions of one user.

    Args:
        directory: directory of the files; default: `sessions` in the user's state directory.

    Raises:
        InvalidSetting: the user has no home directory, and no variable names another one.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = _user_directory() if directory is None else directory

    def path(self, url: str, name: str = DEFAULT_NAME, suffix: str = ".json") -> Path:
        """The file of a session, or one beside it with another suffix.

        Raises:
            InvalidSetting: the name is not allowed.
        """
        if not _NAME.fullmatch(name):
            raise InvalidSetting(
                f"{name!r} is not a valid name for a session: it begins with a letter or a digit, and has up to "
                "64 letters, digits, '_', '.' and '-'"
            )
        digest = hashlib.sha256(url.encode()).hexdigest()[:_DIGEST_LENGTH]
        return self.directory / f"{name}-{digest}{suffix}"

    def find(self, url: str, name: str = DEFAULT_NAME) -> KeptSession | None:
        """The saved session for a server's address (without credentials) and a name; None if there is none."""
        return _read(self.path(url, name))

    def __iter__(self) -> Iterator[KeptSession]:
        """Iterate over the saved sessions, sorted by name."""
        found = map(_read, sorted(self.directory.glob("*.json")))
        return (kept for kept in found if kept is not None)

    def save(self, kept: KeptSession) -> None:
        """Save a session. An earlier one with the same server and name is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        self._make()
        atomic_files.replace(self.path(kept.url, kept.name), kept.model_dump_json(indent=2) + "\n")

    def forget(self, kept: KeptSession) -> None:
        """Remove the file of a session, unless it contains a later session by now."""
        current = self.find(kept.url, kept.name)
        if current is not None and current.session_id == kept.session_id:
            self.path(kept.url, kept.name).unlink(missing_ok=True)

    def lock(self, url: str, name: str = DEFAULT_NAME) -> FileLock:
        """The lock for opening a session of this name or keeping it alive. Any thread may release it.

        Raises:
            OSError: the directory cannot be created.
        """
        self._make()
        return FileLock(self.path(url, name, ".lock"), mode=atomic_files.PRIVATE, thread_local=False)

    def _make(self) -> None:
        self.directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)


def _user_directory() -> Path:
    try:
        return user_state_path("neops-remote-lab") / "sessions"
    except RuntimeError:
        raise InvalidSetting("this user has no home directory: set HOME or XDG_STATE_HOME to a directory") from None


def _read(path: Path) -> KeptSession | None:
    """Read a session; None if the file does not exist or another version wrote it."""
    try:
        return KeptSession.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
