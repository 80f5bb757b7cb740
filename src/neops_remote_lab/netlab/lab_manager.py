"""The one lab of this host: started, shared by reference counting, and torn down with proof.

For the server and for local fixtures alike. All methods block (except where they say not) and may be called from any
thread.
"""

import atexit
import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from filelock import Timeout

from neops_remote_lab.core.host_locks import HostLock, read_note
from neops_remote_lab.core.settings import Settings, read_settings
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.lab import DeviceInfoDto, LabState, LabStatusDto
from neops_remote_lab.netlab import ownership, workspace
from neops_remote_lab.netlab.cleaner import Cleaner
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.process import PreloadedNetlab
from neops_remote_lab.netlab.workspace import Identity, Workspace

LAB_LOCK: Final = "lab"
"""The lock on this host's lab, held for as long as the lab lives."""
Verdict = Literal["start", "reuse", "replace", "wait", "busy"]


@dataclass
class HeldLab:
    """The lab that this process holds."""

    workspace: Workspace
    state: Literal["starting", "running", "stopping"] = "starting"
    references: int = 0
    devices: list[DeviceInfoDto] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What the last teardown left behind."""
    interrupt: threading.Event = field(default_factory=threading.Event)


def decide(lab: HeldLab | None, identity: Identity, *, reuse: bool) -> Verdict:
    """What an acquire means for the lab there is.

    `wait`: the same question has another answer soon. `replace`: a lab that nobody holds makes room.
    """
    if lab is None:
        return "start"
    if lab.state == "stopping":
        return "wait"
    same = lab.workspace.identity == identity
    if lab.state == "starting":
        return "wait" if same and reuse else "busy"
    if lab.references == 0:
        return "reuse" if same else "replace"
    return "reuse" if same and reuse else "busy"


class LabManager:
    """The lab of this host, process-wide; across processes it is guarded by a file lock held as long as the lab lives.

    `acquire` and `release` are for local use without a server; the server calls `try_acquire`.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Without settings, those of the environment count."""
        self._settings = settings or read_settings({})
        self._guard = threading.Lock()
        self._changed = threading.Event()
        self._lab: HeldLab | None = None
        self._preloaded = PreloadedNetlab(self._settings.netlab)
        self._netlab = NetlabCommands(self._settings, self._preloaded)
        self._cleaner = Cleaner(self._netlab, self._settings)
        self._lock = HostLock(self._settings.lock_dir, LAB_LOCK)
        self._held_by = ""
        self._keep = False
        atexit.register(self._clean_up_at_exit)

    @property
    def current(self) -> HeldLab | None:
        """The lab that this process holds. Never blocks."""
        return self._lab

    def acquire(self, topology: Path, *, reuse: bool = True) -> list[DeviceInfoDto]:
        """Start a topology, or share it when it runs already; waits for as long as the host is busy.

        Raises:
            ValueError: the file is no `.yml`, or netlab rejects it; the message is netlab's own.
            FileNotFoundError: there is no such file, or no netlab.
            subprocess.CalledProcessError: netlab failed; `stderr` has its last lines. Nothing is left behind.
            subprocess.TimeoutExpired: netlab took longer than its limit.
        """
        while (devices := self.try_acquire(topology, reuse=reuse)) is None:
            self._changed.wait(self._settings.acquire_poll)
            self._changed.clear()
        return devices

    def try_acquire(
        self, topology: Path | Workspace, *, reuse: bool = True, interrupt: threading.Event | None = None
    ) -> list[DeviceInfoDto] | None:
        """As `acquire`, but None at once when the host is busy.

        Args:
            topology: a file, or a `Workspace`, which is taken over: it becomes the lab's directory, or is removed when
                an equal lab runs already.
            reuse: share the lab when it runs this topology already.
            interrupt: ends the start early, once it is set; InterruptedError is raised then, and nothing is left.
        """
        made = topology if isinstance(topology, Workspace) else self._copy(Path(topology))
        try:
            lab = self._claim(made, interrupt or threading.Event(), reuse=reuse)
        except BaseException:
            workspace.remove(made.base)
            raise
        if lab is None or lab.workspace is not made:
            workspace.remove(made.base)
        if lab is None or lab.state == "running":
            return lab.devices if lab else None
        return self._start(lab)

    def verdict(self, identity: Identity, *, reuse: bool) -> Verdict:
        """What an acquire would do now. Never blocks."""
        return decide(self._lab, identity, reuse=reuse)

    def load_ahead(self) -> None:
        """Load the netlab that starts the next lab; returns before it is loaded. For servers, which start one soon."""
        if self._settings.preload:
            self._preloaded.load()

    def stop_asking(self) -> None:
        """End what netlab is asked about the host, for good; for a process that holds no lab. Never blocks."""
        self._netlab.stop_asking()

    def stop_loading(self) -> None:
        """End what `load_ahead` has loaded, for good."""
        self._preloaded.close()

    def _copy(self, topology: Path) -> Workspace:
        return workspace.copy_topology(topology, self._settings.work_dir, self._settings.lab_host)

    def _claim(self, made: Workspace, interrupt: threading.Event, *, reuse: bool) -> HeldLab | None:
        with self._guard:
            verdict = self.verdict(made.identity, reuse=reuse)
            if verdict == "reuse" and self._lab:
                self._lab.references += 1
                return self._lab
            if verdict == "replace" and self._lab:
                self._lab.state = "stopping"
        if verdict == "replace":
            self.tear_down()
        with self._guard:
            if self._lab is not None or not self._take_lock():
                return None
            self._lab = HeldLab(made, interrupt=interrupt)
            return self._lab

    def _take_lock(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout as busy:
            self._held_by = busy.lock_file
            return False
        with suppress(OSError):  # the lock holds without its note
            self._lock.write_note(json.dumps(ownership.origin() | {"pid": os.getpid()}))
        return True

    def _release_lock(self) -> None:
        self._lock.remove_note()
        self._lock.release()

    def _start(self, lab: HeldLab) -> list[DeviceInfoDto]:
        try:
            self._cleaner.look_before(lab.workspace, lab.interrupt)
        except BaseException:
            self._abandon(lab)
            raise
        try:
            lab.devices = self._netlab.up(lab.workspace, lab.interrupt)
        except BaseException as error:
            in_the_way = self._cleaner.instance_in_the_way(error)
            self.tear_down()
            if in_the_way:
                raise BlockingIOError(in_the_way) from error
            raise
        with self._guard:
            lab.references += 1
            lab.state = "running"
        self._changed.set()
        return lab.devices

    def _abandon(self, lab: HeldLab) -> None:
        """Give up a lab of which nothing was started."""
        workspace.remove(lab.workspace.base)
        with self._guard:
            self._lab = None
            self._release_lock()
        self._changed.set()

    def release(self, topology: Path) -> None:
        """Let go of one reference; the lab is torn down with the last one.

        Raises:
            RuntimeError: no lab is held, or something is left after the teardown.
            ValueError: the lab that runs is not this topology.
        """
        digest = workspace.digest(Path(topology))
        with self._guard:
            lab = self._lab
            if lab is None or not (lab.references or lab.left):
                raise RuntimeError("no lab is held: there is nothing to release")
            if lab.workspace.identity.topology != digest:
                raise ValueError(f"{topology} is not the topology that runs")
            lab.references = max(0, lab.references - 1)
            last = lab.references == 0
            if last:
                lab.state = "stopping"  # before anybody else can share a lab that is about to end
        if last and (left := self.tear_down()):
            raise RuntimeError(f"the lab could not be removed: {', '.join(left)} is left")

    def set_references(self, count: int) -> None:
        """Set how many hold the lab; nothing is torn down by that. Never blocks."""
        with self._guard:
            if self._lab:
                self._lab.references = max(0, count)

    def interrupt(self) -> None:
        """End a `netlab up` that runs: it fails, and cleans up after itself. Never blocks."""
        if lab := self._lab:
            lab.interrupt.set()

    def tear_down(self) -> list[str]:
        """Tear the lab down, whoever holds it, and look whether it is gone; what is left after the retries.

        While something is left the lab stays `stopping`, and the host's lock stays held.
        """
        with self._guard:
            lab = self._lab
            if lab is None:
                return []
            lab.state = "stopping"
        lab.left = left = self._cleaner.take_away(lab.workspace)
        if not left:
            with self._guard:
                self._lab = None
                self._release_lock()
            self._changed.set()
        return left

    def status(self) -> LabStatusDto:
        """The lab as this process knows it."""
        lab = self._lab
        if lab is None:
            return LabStatusDto(running=False)
        state: LabState = lab.state
        return LabStatusDto(
            running=lab.state == "running",
            topology=lab.workspace.topology,
            ref_count=lab.references,
            devices=lab.devices,
            state=state,
            topology_sha256=lab.workspace.identity.topology,
        )

    def netlab_status(self) -> str | None:
        """What netlab's list of instances says of the lab's state; None where it is not on the list."""
        return self._cleaner.instances.status(lab.workspace.folder) if (lab := self._lab) else None

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host, although it is free: a lab of somebody else, or a stale entry of netlab's.

        Raises:
            subprocess.SubprocessError, OSError, ValueError: it cannot be told, and so no lab can start.
        """
        return self._cleaner.in_the_way()

    def holder(self) -> str:
        """Which other process of this host holds its lab, for a person."""
        try:
            known = json.loads(read_note(self._held_by) or "")
            told = "pid {pid} of user {user}, since {created}".format(**known)
        except (ValueError, LookupError, TypeError):
            told = "it has left no note"
        return f"another process of this host holds its lab: {one_line(told)}"

    def hold(self, made: Workspace, devices: list[DeviceInfoDto], references: int) -> None:
        """Take over a lab that another server has started, be it up, half up or down; it is `stopping` at first.

        Raises:
            BlockingIOError: another process holds this host's lab.
        """
        with self._guard:
            if self._lab is not None or not self._take_lock():
                raise BlockingIOError(self.holder())
            self._lab = HeldLab(made, "stopping", references, devices)
        self._cleaner.end_processes(made.lab_id)
        ownership.adopt(made.base, self._settings.lab_host)

    def resume(self) -> bool:
        """Go on with a lab taken over, if netlab and the provider say that all of it runs; whether that is so."""
        if (lab := self._lab) is None or not self._netlab.runs(lab.workspace):
            return False
        lab.state = "running"
        return True

    def sweep(self, folders: Sequence[Path] = ()) -> list[str]:
        """Remove what crashes have left below the work directory, apart from the lab that is held; what resists.

        Containers and netlab's instances are looked for; work directories are those that are named.
        """
        return self._cleaner.sweep(folders, self._lab.workspace.base if self._lab else None)

    def keep(self) -> None:
        """Leave the lab alone at the end of this process: the next server adopts it."""
        self._keep = True

    def cleanup(self) -> None:
        """Tear down whatever this process holds; to be called when nobody uses it any more."""
        self.interrupt()
        self.tear_down()

    def _clean_up_at_exit(self) -> None:
        if self._lab is not None and not self._keep:
            logging.disable()  # the handlers' streams may be closed by now
            self.cleanup()
