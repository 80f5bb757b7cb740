"""Executes the steps of a lab's life on this host: lock, start, adopt, verified teardown, sweep.

It neither counts references nor decides what to do: `lab_life` decides.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.cleaner import Cleaner
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import LabInTheWay
from neops_remote_lab.netlab.lab_lock import LabLock
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, remove_workspace


class HostLab:
    """One lab of this host. A file lock that is held for the lab's whole life keeps other processes from starting one.

    Methods block unless they say otherwise. They may be called from any thread, but only one at a time may change the
    lab.
    """

    def __init__(self, settings: NetlabSettings, commands: NetlabCommands, cleaner: Cleaner, lock: LabLock) -> None:
        """Create a lab that shares commands, cleaner and lock with the others of this process. See `HostLabs`."""
        self._settings = settings
        self.commands = commands
        self._cleaner = cleaner
        self._lock = lock
        self._held: Workspace | None = None
        self._leftovers: list[str] = []

    @property
    def held(self) -> Workspace | None:
        """The lab for which this process holds the lock: starting, running or not yet removed."""
        return self._held

    @property
    def leftovers(self) -> list[str]:
        """Names of what the latest teardown could not remove."""
        return self._leftovers

    def start(
        self, workspace: Workspace, interrupt: threading.Event, last_check: Callable[[], None] | None = None
    ) -> list[DeviceInfoDto]:
        """Start the lab that was reserved and return its devices. If the start fails, the lab is torn down.

        Args:
            interrupt: once set, aborts the start with InterruptedError.
            last_check: called immediately before the start changes anything outside the lab's directory.

        Raises:
            LabInTheWay: a lab that is not ours prevents the start.
            TopologyRejected: netlab rejects the topology (the message is netlab's), or the lab would share something
                with other labs of this host.
            The exceptions of `last_check`, and the other ones of `run_netlab`.
        """
        try:
            self._prepare(workspace, interrupt)
            self._cleaner.check_before_start(workspace, self._lock.labs, interrupt)
        except BaseException:
            remove_workspace(workspace.base)  # nothing was started
            self._release(workspace)
            raise
        try:
            devices = self.commands.up(workspace, interrupt, last_check)
            self._cleaner.require_own_containers(workspace)
        except BaseException as error:
            in_the_way = self._cleaner.instance_in_the_way(error)
            self.tear_down()
            if in_the_way:
                raise LabInTheWay(in_the_way) from error
            raise
        if self._settings.several_labs:
            self.commands.preload()  # another lab may start soon
        return devices

    def _prepare(self, workspace: Workspace, interrupt: threading.Event) -> None:
        """Prepare a lab that runs beside others, or check that it runs alone."""
        if self._settings.several_labs:
            self.commands.prepare(workspace, interrupt)
        elif self._lock.holders != {workspace.base}:  # the earlier server had more slots
            raise LabInTheWay("another lab of this server is still running, and this one must run alone")

    def reserve(self, workspace: Workspace) -> None:
        """Acquire the host's lab lock, which a lab needs before it is started or adopted. Never blocks.

        Raises:
            LabInTheWay: another process holds the lock.
        """
        self._lock.acquire(workspace.base)
        self._held = workspace

    def _release(self, workspace: Workspace) -> None:
        if self._held is workspace:  # otherwise another thread has released it
            self._held = None
            self._lock.release(workspace.base)

    def adopt(self, workspace: Workspace) -> None:
        """Take over a lab that an earlier server started, whatever its state.

        Raises:
            LabInTheWay: another process holds the lock of this host's lab, or the lab's number.
        """
        self._lock.expect(workspace.base)  # even if this fails, and is tried again
        self.commands.numbers.adopt(workspace.base)
        self.reserve(workspace)
        self._cleaner.end_processes(workspace.lab_id)
        ownership.adopt(workspace.base, self._settings.lab_host)

    def runs(self) -> bool:
        """Whether every node of the lab is running, according to netlab and its provider."""
        if self._held is None:
            return False
        if ownership.number_of(self._held.base) is None:
            return self.commands.runs(self._held)
        return self._cleaner.runs(self._held)  # `netlab status` does not know where the lab's own status file is

    def tear_down(self) -> list[str]:
        """Tear the lab down and verify it. Returns what is left after the retries.

        The host's lock is kept until nothing is left.
        """
        if (workspace := self._held) is None:
            return []
        self._leftovers = leftovers = self._cleaner.remove_lab(workspace)
        if not leftovers:
            self._release(workspace)
        return leftovers

    def sweep(self, directories: Sequence[Path] = ()) -> list[str]:
        """Remove the leftovers of crashes, but no lab of this process. Returns what could not be removed.

        Args:
            directories: lab directories to check. Containers and netlab instances are found without them.
        """
        return self._cleaner.sweep(directories, self._lock.labs)

    def netlab_status(self) -> str | None:
        """The lab's state in netlab's list of instances; None if the lab is not in the list."""
        return self._cleaner.instances_of(self._held.base).status(self._held.directory) if self._held else None

    def in_the_way(self) -> str | None:
        """Why no lab can start although the host is free: a lab that is not ours, or a stale entry in netlab's list.

        Raises:
            subprocess.SubprocessError, OSError, ValueError: netlab or Docker could not be queried.
        """
        return self._cleaner.in_the_way()

    def preload(self) -> None:
        """Begin to load the netlab process that will start the next lab. Returns before it is loaded."""
        self.commands.preload()

    def stop_preloading(self) -> None:
        """End the preloaded netlab; later calls of `preload` do nothing."""
        self.commands.stop_preloading()

    def cancel_queries(self) -> None:
        """Abort current and future netlab commands that only query the host. Never blocks.

        For a process without a lab: a teardown needs these commands.
        """
        self.commands.cancel_queries()
