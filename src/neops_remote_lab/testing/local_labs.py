"""Labs of this machine's own netlab, for a run with `REMOTE_LAB_URL=local`.

One process of the run has the labs: the only one, or the controller of pytest-xdist, which its workers ask through a
socket. No server is involved, and nothing of one is imported.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import cached_property
from subprocess import SubprocessError, TimeoutExpired
from typing import TYPE_CHECKING, Final, Protocol

from neops_remote_lab.client.exceptions import SessionClosed
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.testing.sources import Sources

if (
    TYPE_CHECKING
):  # pydantic and netlab's room are loaded with the first lab, the latter in one process of the run alone
    import pytest

    from neops_remote_lab.models.lab import DeviceInfoDto
    from neops_remote_lab.netlab.lab_manager import LabManager

REMINDER_INTERVAL: Final = 60.0
"""Seconds between two lines that tell of the same wait."""

Done = tuple[int, bytes, bytes, bool]
"""A command that has ended: exit status, standard output and error, and whether more was printed than is kept."""


class Fault(Enum):
    """What a failure concerns, and so for which tests nothing is tried again."""

    TOPOLOGY = auto()
    """netlab rejects it."""
    LAB = auto()
    """It did not start, or did not end."""
    MACHINE = auto()
    """The lab host cannot be reached, or no lab can start on it."""


class LocalLabFailed(RuntimeError):
    """A lab of this machine did not start, or could not be removed; the message says why.

    Attributes:
        fault: what the failure concerns.
    """

    def __init__(self, message: str, fault: Fault = Fault.LAB) -> None:
        super().__init__(message, fault)  # both, so that it can be sent to another process
        self.fault = fault

    def __str__(self) -> str:
        return str(self.args[0])


class Labs(Protocol):
    """The labs of a run, be they those of this process or of another one."""

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """A running lab: the name of a reference to it, and its devices."""

    def release(self, reference: str) -> None:
        """Let go of a reference; the lab is torn down with the last one."""

    def destroy(self) -> None:
        """Tear the lab down, whoever has it."""

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """Run a command in a device of the lab that runs."""

    def artifacts(self) -> bytes:
        """An archive of what would explain a failure."""

    def close(self) -> None:
        """Leave the labs; they are torn down unless others of the run use them."""


def local_labs(config: pytest.Config) -> LocalLabs:
    """The labs of this machine, for a run.

    Raises:
        ValueError: a setting cannot be read; one sentence that names its flag, variable or ini key.
    """

    def tell(sentence: str) -> None:
        from neops_remote_lab.testing.relay import progress_of  # noqa: PLC0415 - slow, and most runs need not wait

        progress_of(config).note(sentence)

    sources = Sources.of(config)
    return LocalLabs(sources.value("session_timeout"), sources.value("acquisition_timeout"), tell)


class LocalLabs:
    """The one lab of this machine that a run has at a time. Any thread may call.

    Args:
        wait_timeout: seconds to wait while another process uses the lab of this machine.
        start_timeout: seconds that `netlab up` may take.
        tell: called with a sentence for the user, from the thread that waits.
        clock: where the time comes from.
    """

    def __init__(
        self, wait_timeout: float, start_timeout: float, tell: Callable[[str], object], clock: Clock | None = None
    ) -> None:
        self._wait_timeout = wait_timeout
        self._start_timeout = start_timeout
        self._tell = tell
        self._clock = clock or Clock()
        self._closing = threading.Event()
        self._guard = threading.Lock()
        self._references: set[str] = set()

    @cached_property
    def _manager(self) -> LabManager:
        from neops_remote_lab.core.settings import read_settings  # noqa: PLC0415 - see above
        from neops_remote_lab.netlab import lab_manager, ownership  # noqa: PLC0415
        from neops_remote_lab.netlab.settings import NetlabSettings  # noqa: PLC0415

        try:
            given = read_settings(NetlabSettings)
        except ValueError as error:
            raise LocalLabFailed(str(error), Fault.MACHINE) from None
        # Apart from those of a server, whose labs may outlive it on purpose.
        work_dir = given.work_dir.with_name(f"{given.work_dir.name}-local")
        limit = min(given.up_timeout, self._start_timeout)
        manager = lab_manager.LabManager(
            given.model_copy(update={"work_dir": work_dir, "up_timeout": limit}), suffixes=(".yml", ".yaml")
        )
        if left := manager.sweep(ownership.directories(work_dir)):
            self._tell(f"an earlier run has left {', '.join(left)}, which could not be removed")
        return manager

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """Start a lab, or share the one that runs; waits while another process uses the lab of this machine.

        Returns:
            The name of a new reference, and the devices.

        Raises:
            FileNotFoundError, ValueError: a file is missing, or cannot be used.
            TimeoutError: the machine was busy for too long.
            LocalLabFailed: there is no lab.
            SessionClosed: the run ends.
        """
        files.path.stat()
        files.found()  # so that no missing file is taken for a missing netlab
        with self._guard:
            manager = self._manager
        try:
            devices = manager.acquire(
                files.path, reuse=reuse, extra_files=files.extra_files, on_wait=self._waiter(files.name)
            )
        except (SessionClosed, TimeoutError):
            raise
        except (ValueError, SubprocessError, OSError, MemoryError) as error:
            if self._closing.is_set():
                raise SessionClosed from None
            raise _failed(error) from None
        reference = uuid.uuid4().hex
        with self._guard:
            if not self._closing.is_set():
                self._references.add(reference)
                return reference, devices
        manager.cleanup()  # the end of the run has met the start before there was anything to interrupt
        raise SessionClosed

    def release(self, reference: str) -> None:
        """Let go of a reference; the lab is torn down with the last one.

        Raises:
            LocalLabFailed: there is no such reference, or something is left of the lab.
        """
        with self._guard:
            if reference not in self._references:
                raise LocalLabFailed("no lab is held: there is nothing to release")
            self._references.remove(reference)
        try:
            self._manager.release()
        except RuntimeError as error:
            raise LocalLabFailed(str(error)) from None

    def destroy(self) -> None:
        """Tear the lab down, whoever has it.

        Raises:
            LocalLabFailed: something is left of it.
        """
        with self._guard:
            self._references.clear()
        if left := self._manager.tear_down():
            raise LocalLabFailed(f"the lab could not be removed: {', '.join(left)} is left")

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """Run a command in a device of the lab that runs.

        Raises:
            LookupError: the lab has no such device in a container.
            TimeoutError: the command did not end in time.
            LocalLabFailed: no lab runs, or it ends meanwhile; or Docker could not run the command.
        """
        from neops_remote_lab.netlab.failures import failure  # noqa: PLC0415 - see above

        try:
            done = self._manager.execute(device, words, stdin=stdin, timeout=timeout)
        except TimeoutExpired:
            raise TimeoutError(f"the command did not end within {timeout:g} s, and was ended") from None
        except (RuntimeError, SubprocessError, OSError) as error:
            raise LocalLabFailed(f"the command could not be run in {device}: {failure(error)}") from None
        return done.exit_status, done.stdout, done.stderr, done.truncated

    def artifacts(self) -> bytes:
        """An archive of what would explain a failure of the lab that runs, or of one that did not start.

        Raises:
            LocalLabFailed: there is no such lab.
            OSError: the archive cannot be written.
        """
        try:
            return self._manager.artifacts()
        except RuntimeError as error:
            raise LocalLabFailed(str(error)) from None

    def close(self) -> None:
        """Tear down whatever there is, and start nothing more. May be called again, while a start runs, too."""
        self._closing.set()
        with self._guard:
            self._references.clear()
            manager = self.__dict__.get("_manager")
        if manager is not None:
            manager.cleanup()

    def _waiter(self, name: str) -> Callable[[str], None]:
        began = self._clock.monotonic()
        told: tuple[str, float] | None = None

        def wait(who: str) -> None:
            nonlocal told
            if self._closing.is_set():
                raise SessionClosed
            now = self._clock.monotonic()
            if now - began >= self._wait_timeout:
                raise TimeoutError(f"no lab for {name} in {self._wait_timeout:g} s: {who}")
            if told is None or told[0] != who or now - told[1] >= REMINDER_INTERVAL:
                told = who, now
                self._tell(f"waiting for the lab of this machine, for {now - began:.0f} s: {who}")

        return wait


def _failed(error: Exception) -> LocalLabFailed:
    from neops_remote_lab.netlab.failures import TopologyRejected, failure  # noqa: PLC0415 - see above

    match error:
        case TopologyRejected():
            return LocalLabFailed(f"netlab rejects the topology: {error}", Fault.TOPOLOGY)
        case ValueError():
            return LocalLabFailed(str(error), Fault.TOPOLOGY)
        case FileNotFoundError():
            hint = "install neops-remote-lab[netlab], or name it with NEOPS_REMOTE_LAB_NETLAB"
            return LocalLabFailed(f"netlab cannot be run on this machine: {hint}", Fault.MACHINE)
        case _:
            return LocalLabFailed(f"netlab failed to start the lab: {failure(error)}")
