"""The lab of this host without a server: shared by reference counting, torn down with the last release."""

import atexit
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.core.identity import sha256_of
from neops_remote_lab.core.settings import read_settings
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.lab import DeviceInfoDto, LabStatusDto
from neops_remote_lab.netlab.failures import LabInTheWay, failure
from neops_remote_lab.netlab.host_labs import HostLabs
from neops_remote_lab.netlab.lab_life import Decision, Observed, Operation, Step, Wanted, next_step
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.netlab.node_commands import Completed, NodeCommands
from neops_remote_lab.netlab.nodes import find_nodes
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, copy_topology, remove_workspace

MAX_OUTPUT_BYTES: Final = 8 << 20
"""Maximum number of bytes of standard output, and of standard error, that are kept of a command in a device."""


@dataclass
class LocalLab:
    """State of the lab that this process started."""

    workspace: Workspace
    state: LiveLabState = LiveLabState.STARTING
    references: int = 0
    devices: list[DeviceInfoDto] = field(default_factory=list)
    interrupt: threading.Event = field(default_factory=threading.Event)
    starter: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def is_started_elsewhere(self) -> bool:
        """Whether another thread is starting the lab."""
        starting = self.state is LiveLabState.STARTING and self.starter.is_alive()
        return starting and self.starter is not threading.current_thread()


class LabManager:
    """One lab shared by all threads of this process, for local fixtures. The server uses a slot instead.

    The lab is torn down when the process ends.
    """

    def __init__(self, settings: NetlabSettings | None = None, *, suffixes: Sequence[str] = (".yml",)) -> None:
        """Create a manager without a lab.

        Args:
            settings: default to those of the environment.
            suffixes: accepted suffixes of a topology's file name.
        """
        # It has one lab, whatever the settings say about a server on this host.
        self._settings = (settings or read_settings(NetlabSettings)).model_copy(update={"slots": 1, "prestart": False})
        self._suffixes = suffixes
        host_labs = HostLabs(self._settings)
        self._host_lab, self._artifacts = host_labs.new(), host_labs.artifacts
        self._guard = threading.Lock()
        self._teardown = threading.Lock()
        self._changed = threading.Event()
        self._lab: LocalLab | None = None
        self._failed: tuple[str, str] | None = None
        self._failed_logs = FailedLogs(
            self._settings.work_dir, days=self._settings.failed_log_days, number=self._settings.max_failed_logs
        )
        atexit.register(self._clean_up_at_exit)

    @property
    def current(self) -> LocalLab | None:
        """The lab that this process started; None if there is none. Never blocks."""
        return self._lab

    def acquire(
        self,
        topology: Path,
        *,
        reuse: bool = True,
        extra_files: Sequence[PathName] = (),
        on_wait: Callable[[str], object] | None = None,
    ) -> list[DeviceInfoDto]:
        """Start a topology, or share it if it is already running. Waits while the host is busy.

        Args:
            topology: the topology file.
            reuse: share a running lab that already has references, if its topology and extra files are the same.
            extra_files: files that the topology needs, relative to its directory: paths, directories (which stand for
                all files below them), and patterns as for `pathlib.Path.glob`. This call copies them.
            on_wait: called before each pause with a message that says who uses the host; an exception ends the wait.

        Raises:
            ValueError: the file name has another suffix, an extra file cannot be used, or netlab rejects the topology
                (with netlab's message).
            FileNotFoundError: a file or the netlab command does not exist.
            BlockingIOError: a lab that is not ours prevents the start.
            subprocess.CalledProcessError: netlab failed; `stderr` has its last lines. The lab has been removed.
            subprocess.TimeoutExpired: netlab took longer than its limit.
        """
        with self._copy_of(topology, extra_files) as workspace:
            while True:
                try:
                    lab = self._claim(workspace, reuse=reuse)
                except LabInTheWay as busy:
                    if on_wait is not None:
                        on_wait(str(busy))
                    self._changed.wait(self._settings.acquire_poll)
                    self._changed.clear()
                else:
                    return self._devices_of(lab)

    def try_acquire(
        self, topology: Path, *, reuse: bool = True, extra_files: Sequence[PathName] = ()
    ) -> list[DeviceInfoDto] | None:
        """As `acquire`, but returns None instead of waiting while the host is busy."""
        with self._copy_of(topology, extra_files) as workspace:
            try:
                lab = self._claim(workspace, reuse=reuse)
            except LabInTheWay:
                return None
            return self._devices_of(lab)

    @contextmanager
    def _copy_of(self, topology: Path, extra_files: Sequence[PathName]) -> Iterator[Workspace]:
        """A new workspace with copies of the files. It is removed on exit unless the lab uses it."""
        files = TopologyFiles.of(topology, extra_files)
        if files.path.suffix not in self._suffixes:
            raise ValueError(f"{files.path} must end in {' or '.join(self._suffixes)}")
        workspace = copy_topology(files, self._settings.work_dir, self._settings.lab_host)
        try:
            yield workspace
        finally:
            if self._host_lab.held is not workspace:
                remove_workspace(workspace.base)

    def _claim(self, workspace: Workspace, *, reuse: bool) -> LocalLab:
        """The running lab, with a reference added, or a new one to start.

        Raises:
            LabInTheWay: the host is busy.
        """
        with self._guard:
            decision = self._decide(workspace, reuse=reuse)
            if decision.step is Step.SHARE and self._lab:
                self._lab.references += 1
                return self._lab
            if decision.step is Step.STOP and self._lab:
                self._lab.state = LiveLabState.STOPPING
        if decision.step is Step.STOP:
            self.tear_down()
        with self._guard:
            if self._decide(workspace, reuse=reuse).step is not Step.START:
                name = self._lab.workspace.topology if self._lab else "another topology"
                raise LabInTheWay(f"this process uses the host's lab, for {name}")
            self._host_lab.reserve(workspace)
            self._lab = LocalLab(workspace)
            return self._lab

    def _decide(self, workspace: Workspace, *, reuse: bool) -> Decision:
        lab = self._lab
        operations = {LiveLabState.STARTING: Operation.START, LiveLabState.STOPPING: Operation.STOP}
        seen = (
            Observed()
            if lab is None
            else Observed(
                state=lab.state,
                identity=lab.workspace.identity,
                references=lab.references,
                in_session=True,
                held=True,
                operation=operations.get(lab.state),
                awaited=True,
            )
        )
        return next_step(seen, Wanted(workspace.identity, reuse, same_session=True))

    def _devices_of(self, lab: LocalLab) -> list[DeviceInfoDto]:
        """The devices of a claimed lab, which is started unless it is running."""
        if lab.state is LiveLabState.RUNNING:
            return lab.devices
        lab_id, self._failed = lab.workspace.lab_id, None
        self._failed_logs.keep(lab_id, lab.workspace.log)
        try:
            lab.devices = self._host_lab.start(lab.workspace, lab.interrupt)
        except BaseException as error:
            self._failed = lab_id, failure(error)
            self._failed_logs.prune()
            self._clear_if_removed(lab)
            raise
        self._failed_logs.discard(lab_id)
        with self._guard:
            lab.references += 1
            lab.state = LiveLabState.RUNNING
        self._changed.set()
        return lab.devices

    def _clear_if_removed(self, lab: LocalLab) -> None:
        with self._guard:
            lab.state = LiveLabState.STOPPING
            if self._host_lab.held is None and self._lab is lab:
                self._lab = None
        self._changed.set()

    def release(self, topology: Path | None = None) -> None:
        """Release one reference. The last release tears the lab down.

        Args:
            topology: the topology of the lab; None means the running one.

        Raises:
            RuntimeError: there is no reference to release, or the teardown was incomplete.
            ValueError: another topology is running.
        """
        sha256 = None if topology is None else sha256_of(Path(topology))
        with self._guard:
            lab = self._lab
            if lab is None or not (lab.references or self._host_lab.leftovers):
                raise RuntimeError("no lab is held: there is nothing to release")
            if sha256 not in (None, lab.workspace.identity.topology):
                raise ValueError(f"{topology} is not the topology that runs")
            lab.references = max(0, lab.references - 1)
            last = lab.references == 0
            if last:
                lab.state = LiveLabState.STOPPING  # under the guard, so that no other thread shares it now
        if last and (leftovers := self.tear_down()):
            raise RuntimeError(f"the lab could not be removed: {', '.join(leftovers)} is left")

    def interrupt(self) -> None:
        """Abort a start in progress, which then fails and cleans up. Never blocks."""
        if lab := self._lab:
            lab.interrupt.set()

    def tear_down(self) -> list[str]:
        """Tear the lab down, regardless of references, and verify it. Returns what is left after the retries.

        Until nothing is left, the lab stays `stopping` and the host's lock is kept.
        """
        with self._teardown:
            with self._guard:
                lab = self._lab
                if lab is None:
                    return []
                lab.state = LiveLabState.STOPPING
            lab.interrupt.set()  # commands in its devices
            leftovers = self._host_lab.tear_down()
            self._clear_if_removed(lab)
            return leftovers

    def status(self) -> LabStatusDto:
        """The lab as this process knows it. Never blocks."""
        lab = self._lab
        if lab is None:
            return LabStatusDto(running=False)
        return LabStatusDto(
            running=lab.state is LiveLabState.RUNNING,
            topology=lab.workspace.topology,
            ref_count=lab.references,
            devices=lab.devices,
            state=lab.state.value,
            topology_sha256=lab.workspace.identity.topology,
        )

    def netlab_status(self) -> str | None:
        """As `HostLab.netlab_status`."""
        return self._host_lab.netlab_status()

    def artifacts(self) -> bytes:
        """The artifacts of the running lab, or of the latest lab if it failed to start, as a gzipped tar archive.

        Raises:
            RuntimeError: there is no such lab.
            OSError: the archive cannot be written.
        """
        now, lab, collector = Clock().now(), self._lab, self._artifacts
        if lab is not None and lab.state is LiveLabState.RUNNING:
            archive = collector.of_lab(lab.workspace, lab.devices, now, lab.interrupt)
        elif self._failed is not None:
            lab_id, error = self._failed
            archive = collector.of_failed_lab(lab_id, self._failed_logs.path(lab_id), error, now)
        else:
            raise RuntimeError("no lab is running, and none has failed to start")
        with archive:
            return archive.read()

    def execute(self, device: str, words: Sequence[str], *, stdin: bytes = b"", timeout: float = 60) -> Completed:
        """Run a command in a device of the running lab, without a shell, and wait until it ends.

        Args:
            device: name of the device.
            words: the command and its arguments; the first one does not begin with a hyphen.
            stdin: standard input of the command.
            timeout: seconds after which the command is terminated.

        Raises:
            RuntimeError: no lab is running.
            LookupError: the lab has no such device in a container.
            InterruptedError: the lab is being torn down.
            NoShell: the device has no shell.
            subprocess.TimeoutExpired: the command did not end in time.
            subprocess.CalledProcessError: Docker could not run the command; `stderr` says why.
        """
        lab = self._lab
        if lab is None or lab.state is not LiveLabState.RUNNING:
            raise RuntimeError("no lab is running")
        netlab = self._host_lab.commands
        nodes = find_nodes(lab.workspace.base, netlab.docker)
        if device not in nodes:
            raise LookupError(f"the lab has no device {device!r} in a container: it has {', '.join(nodes) or 'none'}")
        return NodeCommands(netlab, self._settings.kill_grace).execute(
            nodes[device],
            words,
            lab_id=lab.workspace.lab_id,
            stdin=stdin,
            timeout=timeout,
            most=MAX_OUTPUT_BYTES,
            interrupt=lab.interrupt,
        )

    def sweep(self, directories: Sequence[Path] = ()) -> list[str]:
        """As `HostLab.sweep`."""
        return self._host_lab.sweep(directories)

    def cleanup(self) -> None:
        """Tear the lab down, regardless of references. A start in another thread is aborted first."""
        while (lab := self._lab) is not None and lab.is_started_elsewhere:
            lab.interrupt.set()
            self._changed.wait(self._settings.acquire_poll)
        self.tear_down()

    def _clean_up_at_exit(self) -> None:
        if self._lab is not None:
            logging.disable()  # handlers may have closed streams at this point
            self.cleanup()
