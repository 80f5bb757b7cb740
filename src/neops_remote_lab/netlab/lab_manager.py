"""The lab of this host without a server: started, shared by reference counting, and torn down with the last user."""

import atexit
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from neops_remote_lab.core.codes import LiveLabState
from neops_remote_lab.core.identity import sha256_of
from neops_remote_lab.core.settings import read_settings
from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.models.lab import DeviceInfoDto, LabStatusDto
from neops_remote_lab.netlab.failures import LabInTheWay
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.lab_life import Decision, Operation, Seen, Step, Wanted, next_step
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, copy_topology, remove_workspace


@dataclass
class LocalLab:
    """The lab that this process has started."""

    workspace: Workspace
    state: LiveLabState = LiveLabState.STARTING
    references: int = 0
    devices: list[DeviceInfoDto] = field(default_factory=list)
    interrupt: threading.Event = field(default_factory=threading.Event)
    starter: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def is_started_elsewhere(self) -> bool:
        """Whether another thread starts it at this moment."""
        starting = self.state is LiveLabState.STARTING and self.starter.is_alive()
        return starting and self.starter is not threading.current_thread()


class LabManager:
    """One lab for all threads of this process, with the methods that local fixtures call. A server has a slot instead.

    The lab is torn down when the process ends.
    """

    def __init__(self, settings: NetlabSettings | None = None, *, suffixes: Sequence[str] = (".yml",)) -> None:
        """Without settings, those of the environment count. `suffixes` are those that a topology's name may have."""
        self._settings = settings or read_settings(NetlabSettings)
        self._suffixes = suffixes
        self._host_lab = HostLab(self._settings)
        self._guard = threading.Lock()
        self._teardown = threading.Lock()
        self._changed = threading.Event()
        self._lab: LocalLab | None = None
        atexit.register(self._clean_up_at_exit)

    @property
    def current(self) -> LocalLab | None:
        """The lab that this process has started. Never blocks."""
        return self._lab

    def acquire(
        self,
        topology: Path,
        *,
        reuse: bool = True,
        extra_files: Sequence[PathName] = (),
        on_wait: Callable[[str], object] | None = None,
    ) -> list[DeviceInfoDto]:
        """Start a topology, or share it when it runs already; waits for as long as the host is busy.

        Args:
            reuse: share the lab when the same topology, with the same extra files, runs already.
            extra_files: files that the topology needs, relative to its directory: paths, directories that stand for
                all below them, and patterns as `pathlib.Path.glob` has them. They are read once, by this call.
            on_wait: called with who uses the host, before each pause; what it raises ends the wait.

        Raises:
            ValueError: the file is no `.yml`, an extra file cannot be used, or netlab rejects the topology; the message
                is netlab's own.
            FileNotFoundError: there is no such file, or no netlab.
            BlockingIOError: a lab that is not ours is in the way.
            subprocess.CalledProcessError: netlab failed; `stderr` has its last lines. Nothing is left behind.
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
        """As `acquire`, but None at once when the host is busy."""
        with self._copy_of(topology, extra_files) as workspace:
            try:
                lab = self._claim(workspace, reuse=reuse)
            except LabInTheWay:
                return None
            return self._devices_of(lab)

    @contextmanager
    def _copy_of(self, topology: Path, extra_files: Sequence[PathName]) -> Iterator[Workspace]:
        """A new workspace, which is removed again unless it has become that of the lab."""
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
        """The lab that runs, with one reference more, or a new one to start.

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
            self._host_lab.take(workspace)
            self._lab = LocalLab(workspace)
            return self._lab

    def _decide(self, workspace: Workspace, *, reuse: bool) -> Decision:
        lab = self._lab
        operations = {LiveLabState.STARTING: Operation.START, LiveLabState.STOPPING: Operation.STOP}
        seen = (
            Seen()
            if lab is None
            else Seen(
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
        """The devices of a lab that was claimed; it is started where it does not run."""
        if lab.state is LiveLabState.RUNNING:
            return lab.devices
        try:
            lab.devices = self._host_lab.start(lab.workspace, lab.interrupt)
        except BaseException:
            self._forget_if_gone(lab)
            raise
        with self._guard:
            lab.references += 1
            lab.state = LiveLabState.RUNNING
        self._changed.set()
        return lab.devices

    def _forget_if_gone(self, lab: LocalLab) -> None:
        with self._guard:
            lab.state = LiveLabState.STOPPING
            if self._host_lab.held is None and self._lab is lab:
                self._lab = None
        self._changed.set()

    def release(self, topology: Path | None = None) -> None:
        """Let go of one reference; the lab is torn down with the last one.

        Args:
            topology: which lab is meant; the one that runs, where none is given.

        Raises:
            RuntimeError: no lab is held, or something is left after the teardown.
            ValueError: the lab that runs is not this topology.
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
                lab.state = LiveLabState.STOPPING  # before anybody else can share a lab that is about to end
        if last and (left := self.tear_down()):
            raise RuntimeError(f"the lab could not be removed: {', '.join(left)} is left")

    def interrupt(self) -> None:
        """End a `netlab up` that runs: it fails, and cleans up after itself. Never blocks."""
        if lab := self._lab:
            lab.interrupt.set()

    def tear_down(self) -> list[str]:
        """Tear the lab down, whoever holds it, and look whether it is gone; what is left after the retries.

        While something is left the lab stays `stopping`, and the host's lock stays held.
        """
        with self._teardown:
            with self._guard:
                lab = self._lab
                if lab is None:
                    return []
                lab.state = LiveLabState.STOPPING
            left = self._host_lab.tear_down()
            self._forget_if_gone(lab)
            return left

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

    def sweep(self, directories: Sequence[Path] = ()) -> list[str]:
        """As `HostLab.sweep`."""
        return self._host_lab.sweep(directories)

    def cleanup(self) -> None:
        """Tear down whatever this process holds, whoever uses it. A start that another thread runs is ended first."""
        while (lab := self._lab) is not None and lab.is_started_elsewhere:
            lab.interrupt.set()
            self._changed.wait(self._settings.acquire_poll)
        self.tear_down()

    def _clean_up_at_exit(self) -> None:
        if self._lab is not None:
            logging.disable()  # the handlers' streams may be closed by now
            self.cleanup()
