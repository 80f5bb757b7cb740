"""Runs labs with the netlab of this machine, for `REMOTE_LAB_URL=local`.

One process of the run owns the labs: the only one, or the controller of pytest-xdist, whose workers call it through a
socket. No server is involved, and no module of the server is imported.
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

if TYPE_CHECKING:  # slow to import, and only needed in the process that owns the labs
    import pytest

    from neops_remote_lab.models.lab import DeviceInfoDto
    from neops_remote_lab.netlab.lab_manager import LabManager

REMINDER_INTERVAL: Final = 60.0
"""Seconds between two messages about the same wait."""

Done = tuple[int, bytes, bytes, bool]
"""The result of a command: exit status, standard output, standard error, and whether the output was truncated."""


class Fault(Enum):
    """What a failure affects. The run does not try again for other tests that are affected."""

    TOPOLOGY = auto()
    """netlab rejects the topology."""
    LAB = auto()
    """The lab could not be started or removed."""
    MACHINE = auto()
    """The lab host is unreachable, or no lab can start on it."""


class LocalLabFailed(RuntimeError):
    """An operation on a lab of this machine failed; the message says why.

    Attributes:
        fault: what the failure affects.
    """

    def __init__(self, message: str, fault: Fault = Fault.LAB) -> None:
        super().__init__(message, fault)  # both, so that the exception can be pickled
        self.fault = fault

    def __str__(self) -> str:
        return str(self.args[0])


class Labs(Protocol):
    """The labs of a run, which this process or the controller owns. For details, see `LocalLabs`."""

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """Acquire a lab. Returns the name of a new reference, and the devices."""

    def release(self, reference: str) -> None:
        """Release a reference. The lab is torn down with its last one."""

    def destroy(self) -> None:
        """Tear the lab down, regardless of references."""

    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the running lab."""

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """Run a command in a device of the running lab."""

    def artifacts(self) -> bytes:
        """An archive (.tar.gz) with the artifacts of the lab."""

    def close(self) -> None:
        """Stop using the labs. They are torn down unless other processes of the run share them."""


def local_labs(config: pytest.Config) -> LocalLabs:
    """The labs of this machine, with the settings of a run.

    Raises:
        ValueError: a setting is invalid; the message names its flag, variable or ini key.
    """

    def notify(message: str) -> None:
        from neops_remote_lab.testing.relay import progress_of  # noqa: PLC0415 - slow, and only needed to wait

        progress_of(config).note(message)

    sources = Sources.of(config)
    return LocalLabs(sources.value("session_timeout"), sources.value("acquisition_timeout"), notify)


class LocalLabs:
    """Runs one lab at a time on this machine. Thread-safe.

    Args:
        wait_timeout: seconds to wait while another process uses the lab of this machine.
        start_timeout: maximum duration of `netlab up`, in seconds.
        notify: called with messages for the user, in the thread that waits.
        clock: the clock; tests replace it.
    """

    def __init__(
        self, wait_timeout: float, start_timeout: float, notify: Callable[[str], object], clock: Clock | None = None
    ) -> None:
        self._wait_timeout = wait_timeout
        self._start_timeout = start_timeout
        self._notify = notify
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
        # A server on this machine has another directory, because its labs may outlive it.
        work_dir = given.work_dir.with_name(f"{given.work_dir.name}-local")
        limit = min(given.up_timeout, self._start_timeout)
        manager = lab_manager.LabManager(
            given.model_copy(update={"work_dir": work_dir, "up_timeout": limit}), suffixes=(".yml", ".yaml")
        )
        if remaining := manager.sweep(ownership.directories(work_dir)):
            self._notify(f"leftovers of an earlier run could not be removed: {', '.join(remaining)}")
        return manager

    def acquire(self, files: TopologyFiles, reuse: bool) -> tuple[str, list[DeviceInfoDto]]:
        """Start a lab, or share the running one. Waits while another process uses the lab of this machine.

        Returns:
            The name of a new reference, and the devices.

        Raises:
            FileNotFoundError, ValueError: a file is missing or invalid.
            TimeoutError: the lab of this machine was in use for too long.
            LocalLabFailed: the lab could not be started.
            SessionClosed: the run is ending.
        """
        files.path.stat()
        files.found()  # raises FileNotFoundError, which would mean a missing netlab below
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
        manager.cleanup()  # `close` ran too early to interrupt the start
        raise SessionClosed

    def release(self, reference: str) -> None:
        """Release a reference. The lab is torn down with its last one.

        Raises:
            LocalLabFailed: there is no such reference, or the lab could not be removed.
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
        """Tear the lab down, regardless of references.

        Raises:
            LocalLabFailed: the lab could not be removed.
        """
        with self._guard:
            self._references.clear()
        if remaining := self._manager.tear_down():
            raise LocalLabFailed(f"the lab could not be removed: {', '.join(remaining)} is left")

    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the running lab.

        Raises:
            LocalLabFailed: no lab is running.
        """
        status = self._manager.status()
        if not status.running:
            raise LocalLabFailed("no lab is running")
        return status.devices

    def execute(self, device: str, words: Sequence[str], stdin: bytes, timeout: float) -> Done:
        """Run a command in a device of the running lab.

        Args:
            device: name of the device.
            words: the program and its arguments.
            stdin: standard input of the command.
            timeout: seconds after which the command is terminated.

        Raises:
            LookupError: the lab has no such device in a container.
            TimeoutError: the command did not end in time.
            LocalLabFailed: no lab is running, the lab ended meanwhile, or Docker could not run the command.
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
        """An archive (.tar.gz) with the artifacts of the running lab, or of the last lab that failed to start.

        Raises:
            LocalLabFailed: there is no such lab.
            OSError: the archive cannot be written.
        """
        try:
            return self._manager.artifacts()
        except RuntimeError as error:
            raise LocalLabFailed(str(error)) from None

    def close(self) -> None:
        """Tear the lab down, interrupt a start, and refuse further ones. May be called repeatedly, from any thread."""
        self._closing.set()
        with self._guard:
            self._references.clear()
            manager = self.__dict__.get("_manager")
        if manager is not None:
            manager.cleanup()

    def _waiter(self, name: str) -> Callable[[str], None]:
        began = self._clock.monotonic()
        notified: tuple[str, float] | None = None

        def wait(who: str) -> None:
            nonlocal notified
            if self._closing.is_set():
                raise SessionClosed
            now = self._clock.monotonic()
            if now - began >= self._wait_timeout:
                raise TimeoutError(f"no lab for {name} in {self._wait_timeout:g} s: {who}")
            if notified is None or notified[0] != who or now - notified[1] >= REMINDER_INTERVAL:
                notified = who, now
                self._notify(f"waiting for the lab of this machine, for {now - began:.0f} s: {who}")

        return wait


def _failed(error: Exception) -> LocalLabFailed:
    from neops_remote_lab.netlab.failures import TopologyRejected, failure  # noqa: PLC0415 - see above

    match error:
        case TopologyRejected():
            return LocalLabFailed(f"netlab rejects the topology: {error}", Fault.TOPOLOGY)
        case ValueError():
            return LocalLabFailed(str(error), Fault.TOPOLOGY)
        case FileNotFoundError():
            hint = "install neops-remote-lab[netlab], or set NEOPS_REMOTE_LAB_NETLAB to the path of netlab"
            return LocalLabFailed(f"netlab cannot be run on this machine: {hint}", Fault.MACHINE)
        case _:
            return LocalLabFailed(f"netlab failed to start the lab: {failure(error)}")
