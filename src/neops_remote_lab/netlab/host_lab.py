"""The lab of this host, as one process holds it: its lock, its start, and its teardown with proof.

It neither counts references nor decides anything: `lab_life` does.
"""

import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import Timeout

from neops_remote_lab.core.host_locks import HostLock, read_note
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.artifacts import ArtifactCollector
from neops_remote_lab.netlab.cleaner import Cleaner
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import LabInTheWay
from neops_remote_lab.netlab.process import PreloadedNetlab
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, remove_workspace

LAB_LOCK: Final = "lab"
"""The lock on this host's lab, held for as long as the lab lives."""


class HostLab:
    """At most one lab; across processes it is guarded by a file lock that is held as long as the lab lives.

    All methods block, except where they say not, and may be called from any thread, one that changes the lab at a time.
    """

    def __init__(self, settings: NetlabSettings) -> None:
        self._settings = settings
        self._preloaded = PreloadedNetlab(settings.netlab)
        self._netlab = NetlabCommands(settings, self._preloaded)
        self._cleaner = Cleaner(self._netlab, settings)
        self.artifacts = ArtifactCollector(self._netlab, settings)
        self._lock = HostLock(settings.lock_dir, LAB_LOCK)
        self._held: Workspace | None = None
        self._leftovers: list[str] = []

    @property
    def held(self) -> Workspace | None:
        """The lab that this process holds, be it up, half up or not quite down."""
        return self._held

    @property
    def leftovers(self) -> list[str]:
        """What the latest teardown could not remove."""
        return self._leftovers

    def start(self, workspace: Workspace, interrupt: threading.Event) -> list[DeviceInfoDto]:
        """Start the lab that was taken; its devices. Where that fails, nothing is left of it.

        Args:
            interrupt: ends the start early, once it is set; InterruptedError is raised then.

        Raises:
            LabInTheWay: somebody else's lab is in the way.
            TopologyRejected: netlab rejects the topology; the message is netlab's own.
            What `run_netlab` raises otherwise.
        """
        try:
            self._cleaner.look_before(workspace, interrupt)
        except BaseException:
            remove_workspace(workspace.base)  # nothing was started
            self._let_go(workspace)
            raise
        try:
            return self._netlab.up(workspace, interrupt)
        except BaseException as error:
            in_the_way = self._cleaner.instance_in_the_way(error)
            self.tear_down()
            if in_the_way:
                raise LabInTheWay(in_the_way) from error
            raise

    def take(self, workspace: Workspace) -> None:
        """Hold this host's lock for a lab, which may be started or adopted then. Never blocks.

        Raises:
            LabInTheWay: another process holds it.
        """
        try:
            self._lock.acquire()
        except Timeout as busy:
            raise LabInTheWay(_holder(busy.lock_file)) from None
        with suppress(OSError):  # the lock holds without its note
            self._lock.write_note(json.dumps(ownership.origin() | {"pid": os.getpid()}))
        self._held = workspace

    def _let_go(self, workspace: Workspace) -> None:
        if self._held is workspace:  # else another thread was faster
            self._held = None
            self._lock.remove_note()
            self._lock.release()

    def adopt(self, workspace: Workspace) -> None:
        """Take over a lab that another server has started, be it up, half up or down.

        Raises:
            LabInTheWay: another process holds this host's lab.
        """
        self.take(workspace)
        self._cleaner.end_processes(workspace.lab_id)
        ownership.adopt(workspace.base, self._settings.lab_host)

    def runs(self) -> bool:
        """Whether netlab and the provider say that all of the lab runs."""
        return self._held is not None and self._netlab.runs(self._held)

    def tear_down(self) -> list[str]:
        """Tear the lab down and look whether it is gone; what is left after the retries.

        While something is left the host's lock stays held.
        """
        if (workspace := self._held) is None:
            return []
        self._leftovers = leftovers = self._cleaner.remove_lab(workspace)
        if not leftovers:
            self._let_go(workspace)
        return leftovers

    def directories(self) -> list[Path]:
        """The directories of labs that are below the work directory now."""
        return ownership.directories(self._settings.work_dir)

    def sweep(self, directories: Sequence[Path] = ()) -> list[str]:
        """Remove what crashes have left below the work directory, apart from the lab that is held; what resists.

        Containers and netlab's instances are looked for; work directories are those that are named.
        """
        return self._cleaner.sweep(directories, self._held.base if self._held else None)

    def netlab_status(self) -> str | None:
        """What netlab's list of instances says of the lab's state; None where it is not on the list."""
        return self._cleaner.instances.status(self._held.directory) if self._held else None

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host, although it is free: a lab of somebody else, or a stale entry of netlab's.

        Raises:
            subprocess.SubprocessError, OSError, ValueError: it cannot be told, and so no lab can start.
        """
        return self._cleaner.in_the_way()

    def load_ahead(self) -> None:
        """Load the netlab that starts the next lab; returns before it is loaded. For servers, which start one soon."""
        if self._settings.preload:
            self._preloaded.load()

    def stop_loading(self) -> None:
        """End what `load_ahead` has loaded, for good."""
        self._preloaded.close()

    def stop_asking(self) -> None:
        """End what netlab is asked about the host, for good; for a process that holds no lab. Never blocks."""
        self._netlab.stop_asking()


def _holder(lock_file: str) -> str:
    """Which other process of this host holds its lab, for a person."""
    try:
        known = json.loads(read_note(lock_file) or "")
        told = "pid {pid} of user {user}, since {created}".format(**known)
    except (ValueError, LookupError, TypeError):
        told = "it has left no note"
    return f"another process of this host holds its lab: {one_line(told)}"
