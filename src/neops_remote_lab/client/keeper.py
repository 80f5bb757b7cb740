"""A background process that keeps a session alive after the process that opened it has ended.

It ends when the session ends or its file in the state directory is removed. A file lock prevents a second one.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Final, cast

import httpx
import psutil
from filelock import Timeout

from neops_remote_lab.client import programs
from neops_remote_lab.client.access import Credentials
from neops_remote_lab.client.answers import detail_of, parsed, raise_for_error
from neops_remote_lab.client.connection import GONE, ServerConnection, headers_of
from neops_remote_lab.client.state import KeptSession, ProcessRecord, StateDirectory
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.models.queue import QueueDto

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids and credentials

INTERVAL: Final = 5.0
"""Seconds between two heartbeats."""
CALL_TIMEOUT: Final = 5.0
UNREACHABLE_LIMIT: Final = 24 * 3600.0
"""Seconds without a response after which the process ends: the host may be gone for good."""
STOP_TIMEOUT: Final = 5.0
"""Seconds to wait for the end of a process after SIGTERM."""
_READY: Final = "ready"


class KeeperFailed(RuntimeError):
    """The background process could not be started; the message says why."""


def start(kept: KeptSession, url: str, credentials: Credentials | None = None) -> None:
    """Start a process that keeps a saved session alive and outlives this process.

    Args:
        kept: the session, saved with `StateDirectory.save`.
        url: the server's address, with user name and password if it needs them.
        credentials: further credentials that are not in the environment.

    Raises:
        KeeperFailed: the process ended at once; the message names its log.
        OSError: the process cannot be started.
    """
    state = StateDirectory()
    log = state.path(kept.url, kept.name, ".log")
    command = [sys.executable, "-P", "-m", __name__, kept.url, kept.name]
    environment = {"REMOTE_LAB_URL": url} | (credentials or Credentials()).environment()
    process = programs.start_detached(command, log, environment)
    with cast("IO[str]", process.stdout) as answer:
        ready = answer.readline().strip() == _READY
    if not ready:
        process.wait()
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit status {process.returncode}"
        raise KeeperFailed(f"no process keeps the session alive: {reason} (log: {log})")
    process.returncode = 0  # suppress the ResourceWarning about a running child


def stop(kept: KeptSession) -> None:
    """End the process that keeps a session alive, if the recorded process is still running."""
    process = kept.keeper.find() if kept.keeper and kept.origin == "up" else None  # else it is a test run
    if process is None:
        return
    try:
        process.terminate()
        process.wait(STOP_TIMEOUT)
    except psutil.TimeoutExpired:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def is_kept(kept: KeptSession) -> bool:
    """Whether the recorded process that keeps a session alive is running."""
    return kept.keeper is not None and kept.keeper.find() is not None


class Keeper:
    """Keeps one session alive.

    Args:
        server: the connection to the server.
        state: the directory in which the session is saved.
        kept: the session.
        clock: source of time.
        pause: sleeps for a number of seconds.
    """

    def __init__(
        self,
        server: ServerConnection,
        state: StateDirectory,
        kept: KeptSession,
        *,
        clock: Clock | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._server = server
        self._state = state
        self._kept = kept
        self._clock = clock or Clock()
        self._pause = pause
        self._answered_at = self._clock.monotonic()

    def run(self) -> str:
        """Send heartbeats until the session is over. Returns the reason."""
        while (reason := self._reason_to_end()) is None:
            self._pause(INTERVAL)
        return reason

    def _reason_to_end(self) -> str | None:
        found = self._state.find(self._kept.url, self._kept.name)
        if found is None or found.session_id != self._kept.session_id:
            return "the state file of the session was removed or replaced"
        try:
            reason = self._reason_to_leave()
            if reason is not None:
                self._server.end_session(self._kept.session_id)
            else:
                reason = self._beat()
        except httpx.HTTPError as error:
            if self._clock.monotonic() - self._answered_at < UNREACHABLE_LIMIT:
                return None
            reason = f"the server has not answered for {UNREACHABLE_LIMIT:.0f} s: {error}"
        if reason is not None:
            self._state.forget(self._kept)
        return reason

    def _reason_to_leave(self) -> str | None:
        if self._kept.kept_until is not None and self._clock.now() >= self._kept.kept_until:
            return "the session is over: its time is up"
        if not self._kept.yields:
            return None
        answer = self._server.try_once("GET", "/queue", timeout=CALL_TIMEOUT)
        raise_for_error(answer)
        waits = any(entry.status == SessionState.WAITING for entry in parsed(answer, QueueDto).sessions)
        return "the session is over: another one waits" if waits else None

    def _beat(self) -> str | None:
        headers = headers_of(self._kept.session_id)
        answer = self._server.try_once("POST", "/session/heartbeat", timeout=CALL_TIMEOUT, headers=headers)
        if answer.status_code in GONE:
            return f"the server has ended the session: {detail_of(answer)}"
        raise_for_error(answer)
        self._answered_at = self._clock.monotonic()
        return None


def main(url: str, name: str) -> None:
    """Entry point of the background process. Address and credentials are in the environment."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    state = StateDirectory()
    kept = state.find(url, name)
    if kept is None:
        sys.exit(f"no session of the name {name} is remembered")
    lock = state.lock(url, name)
    try:
        lock.acquire(timeout=STOP_TIMEOUT)  # the process of an earlier session may be ending
    except Timeout:
        sys.exit("another process keeps a session of this name alive")
    kept = kept.model_copy(update={"keeper": ProcessRecord.of()})
    state.save(kept)
    with ServerConnection(os.environ["REMOTE_LAB_URL"], name="REMOTE_LAB_URL") as server:
        os.chdir("/")  # do not keep the current directory from being unmounted
        os.write(sys.stdout.fileno(), f"{_READY}\n".encode())
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        reason = Keeper(server, state, kept).run()
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {reason}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
