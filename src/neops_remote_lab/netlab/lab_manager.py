"""The one lab of this host: started, shared by reference counting, and torn down with proof.

For the server and for local fixtures alike. All methods block (except where they say not) and may be called from any
thread.
"""

import atexit
import json
import logging
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from neops_remote_lab.models.lab import DeviceInfoDto, LabState, LabStatusDto
from neops_remote_lab.netlab import traces, workspace
from neops_remote_lab.netlab.connector import Interrupt, run_docker, run_netlab
from neops_remote_lab.netlab.inventory import read_devices
from neops_remote_lab.netlab.workspace import Identity, Workspace
from neops_remote_lab.settings import Settings, read_settings

logger = logging.getLogger(__name__)

REJECTED_UNTIL = "Checking virtualization provider installation"
"""netlab prints this once it has accepted the topology; nothing is started or registered before."""

DEFAULT_NETWORK = "netlab_mgmt"
"""netlab's own name for the management network, where a crash has taken the file that names it."""

Verdict = Literal["start", "reuse", "replace", "wait", "busy"]


@dataclass
class HeldLab:
    """The lab that this process holds."""

    workspace: Workspace
    state: Literal["starting", "running", "stopping"] = "starting"
    references: int = 0
    devices: list[DeviceInfoDto] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What the last tear-down left behind."""
    interrupt: Interrupt = field(default_factory=Interrupt)


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
        self._lock = host_lock(self._settings.lock_dir)
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

    def try_acquire(self, topology: Path | Workspace, *, reuse: bool = True) -> list[DeviceInfoDto] | None:
        """As `acquire`, but None at once when the host is busy.

        A `Workspace` is taken over: it becomes the lab's folder, or is removed when an equal lab runs already.
        """
        made = topology if isinstance(topology, Workspace) else self._copy(Path(topology))
        try:
            lab = self._claim(made, reuse=reuse)
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

    def _copy(self, topology: Path) -> Workspace:
        self._settings.work_dir.mkdir(parents=True, exist_ok=True)
        return workspace.copy_topology(topology, self._settings.work_dir)

    def _claim(self, made: Workspace, *, reuse: bool) -> HeldLab | None:
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
            self._lab = HeldLab(made)
            return self._lab

    def _take_lock(self) -> bool:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def _start(self, lab: HeldLab) -> list[DeviceInfoDto]:
        try:
            self._netlab(
                lab.workspace,
                ["up", lab.workspace.topology, *self._settings.netlab_up_args],
                timeout=self._settings.up_timeout,
                answer="y\n",  # the external provider asks whether the cabling is right
                interrupt=lab.interrupt,
            )
            lab.devices = read_devices(lambda arguments: self._inspect(lab.workspace, arguments))
        except subprocess.CalledProcessError as error:
            rejected = _was_rejected(lab.workspace.log)
            self.tear_down()
            if rejected:
                raise ValueError(error.stderr) from None
            raise
        except BaseException:
            self.tear_down()
            raise
        with self._guard:
            lab.references += 1
            lab.state = "running"
        self._changed.set()
        return lab.devices

    def release(self, topology: Path) -> None:
        """Let go of one reference; the lab is torn down with the last one.

        Raises:
            RuntimeError: no lab is held, or something is left after the tear-down.
            ValueError: the lab that runs is not this topology.
        """
        lab = self._lab
        if lab is None:
            raise RuntimeError("no lab is held: there is nothing to release")
        if lab.workspace.identity.topology != workspace.digest(Path(topology)):
            raise ValueError(f"{topology} is not the topology that runs")
        self.set_references(lab.references - 1)
        if lab.references == 0 and (left := self.tear_down()):
            raise RuntimeError(f"the lab could not be removed: {', '.join(left)} is left")

    def set_references(self, count: int) -> None:
        """Set how many hold the lab; nothing is torn down by that. Never blocks."""
        with self._guard:
            if self._lab:
                self._lab.references = max(0, count)

    def interrupt(self) -> None:
        """End a `netlab up` that runs: it fails, and cleans up after itself. Never blocks."""
        if lab := self._lab:
            lab.interrupt.request()

    def tear_down(self) -> list[str]:
        """Tear the lab down, whoever holds it, and look whether it is gone; what is left after the retries.

        While something is left the lab stays `stopping`, and the host's lock stays held.
        """
        with self._guard:
            lab = self._lab
            if lab is None:
                return []
            lab.state = "stopping"
        lab.left = left = self.take_away(lab.workspace)
        if not left:
            with self._guard:
                self._lab = None
                self._lock.release()
            self._changed.set()
        return left

    def take_away(self, made: Workspace) -> list[str]:
        """Remove all that there is of a lab; what is left after the retries."""
        network = traces.management_network(made.folder) or DEFAULT_NETWORK
        left: list[str] = []
        for attempt in range(self._settings.teardown_retries + 1):
            by_netlab = made.snapshot.exists()
            if by_netlab:
                self._down(made, force=attempt > 0)
            left = self._remove_traces(made.base, network, by_force=attempt > 0 or not by_netlab)
            if not left:
                workspace.remove(made.base)
                break
            logger.warning("lab %s: %s left after attempt %d", made.lab_id, ", ".join(left), attempt + 1)
        return left

    def _down(self, made: Workspace, *, force: bool) -> None:
        arguments = ["down", "--cleanup", *(["--force"] if force else [])]
        try:
            self._netlab(made, arguments, timeout=self._settings.down_timeout)
        except (subprocess.SubprocessError, OSError) as error:
            logger.warning("lab %s: netlab down failed: %s", made.lab_id, failure(error))

    def _remove_traces(self, base: Path, network: str, *, by_force: bool) -> list[str]:
        try:
            return self._left_below(base, network, by_force=by_force)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]

    def _left_below(self, base: Path, network: str, *, by_force: bool) -> list[str]:
        left: list[str] = []
        if traces.docker_is_installed(self._settings.docker):
            if by_force:
                traces.remove_containers(traces.containers_below(base, self._docker), self._docker)
            left += [f"container {found.name}" for found in traces.containers_below(base, self._docker)]
            if not left and traces.network_is_empty(network, self._docker):
                traces.remove_network(network, self._docker)
        if by_force and not left:
            traces.forget_instances(base)
        return left + [f"netlab instance {name}" for name in traces.instances_below(base)]

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
        return traces.instance_status(lab.workspace.folder) if (lab := self._lab) else None

    def hold(self, made: Workspace, devices: list[DeviceInfoDto], references: int) -> None:
        """Take over a lab that another server has started, be it up, half up or down; it is `stopping` at first.

        Raises:
            BlockingIOError: another process holds this host's lab.
        """
        traces.end_processes(traces.processes_of(made.lab_id), self._settings.kill_grace)
        with self._guard:
            if self._lab is not None or not self._take_lock():
                raise BlockingIOError("another process of this host holds its lab")
            self._lab = HeldLab(made, "stopping", references, devices)

    def resume(self) -> bool:
        """Go on with a lab taken over, if netlab and the provider say that all of it runs; whether that is so."""
        if (lab := self._lab) is None or not self._runs(lab.workspace):
            return False
        lab.state = "running"
        return True

    def _runs(self, made: Workspace) -> bool:
        try:
            status = json.loads(self._ask(made, ["status", "--format", "json"]))
            nodes = [node for node in status["nodes"].values() if node.get("provider") != "external"]
            # The external provider has no word on its nodes: that the instance is registered is all there is to know.
            up = [str(node.get("status", "")).lower().startswith(("up", "running")) for node in nodes]
            return status["status"] == "started" and all(up)
        except (subprocess.SubprocessError, OSError, ValueError, LookupError, AttributeError) as error:
            logger.warning("lab %s: it cannot be told whether it runs: %s", made.lab_id, failure(error))
            return False

    def sweep(self, folders: Sequence[Path] = ()) -> list[str]:
        """Remove what crashes have left below the work folder, apart from the lab that is held; what resists.

        Containers and netlab's instances are looked for; work folders are those that are named.
        """
        root = self._settings.work_dir
        stale = set(folders)
        try:
            if traces.docker_is_installed(self._settings.docker):
                stale |= {root / found.lab_folder(root) for found in traces.containers_below(root, self._docker)}
            stale |= {root / name for name in traces.instance_folders(root)}
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]
        if held := self._lab:
            stale.discard(held.workspace.base)
        left: list[str] = []
        for base in sorted(stale):
            logger.warning("sweep: %s was left by an earlier server", base)
            traces.end_processes(traces.processes_of(base.name), self._settings.kill_grace)
            left += self.take_away(workspace.left_in(base))
        return left

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

    def _netlab(
        self,
        made: Workspace,
        arguments: list[str],
        *,
        timeout: float,
        answer: str = "",
        interrupt: Interrupt | None = None,
    ) -> None:
        run_netlab(
            arguments,
            folder=made.folder,
            timeout=timeout,
            command=self._settings.netlab,
            log=made.log,
            answer=answer,
            kill_grace=self._settings.kill_grace,
            lab_id=made.lab_id,
            interrupt=interrupt,
        )

    def _inspect(self, made: Workspace, arguments: Sequence[str]) -> str:
        return self._ask(made, ["inspect", *arguments])

    def _ask(self, made: Workspace, arguments: list[str]) -> str:
        return run_netlab(
            arguments,
            folder=made.folder,
            timeout=self._settings.command_timeout,
            command=self._settings.netlab,
            kill_grace=self._settings.kill_grace,
            lab_id=made.lab_id,
        )

    def _docker(self, arguments: Sequence[str]) -> str:
        return run_docker(arguments, command=self._settings.docker, timeout=self._settings.command_timeout)


def host_lock(lock_dir: Path) -> FileLock:
    """The lock on this host's lab. Made to be opened by every user, and let go of by another thread than took it."""
    return open_lock(lock_dir / "lab.lock")


def open_lock(path: Path) -> FileLock:
    """A lock file that all users of the host share; it is never deleted."""
    folder = path.parent
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    return FileLock(path, thread_local=False, mode=0o666)


def _was_rejected(log: Path) -> bool:
    return REJECTED_UNTIL not in log.read_text(errors="replace")


def failure(error: BaseException) -> str:
    """What a command's failure was, for a person."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit status {error.returncode}: {error.stderr or 'it printed nothing'}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:g} s and was ended"
    return str(error)
