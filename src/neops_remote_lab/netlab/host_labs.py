"""The labs of this host, which share what they know of the host."""

from pathlib import Path

from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.artifacts import ArtifactCollector
from neops_remote_lab.netlab.cleaner import Cleaner
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.lab_lock import LabLock
from neops_remote_lab.netlab.settings import NetlabSettings


class HostLabs:
    """Creates the labs of this process.

    Attributes:
        commands: the commands of netlab and Docker, shared by all labs, with one preloaded netlab.
        artifacts: collects the artifacts of any lab.
    """

    def __init__(self, settings: NetlabSettings) -> None:
        self._settings = settings
        self.commands = NetlabCommands(settings)
        self.artifacts = ArtifactCollector(self.commands, settings)
        self._cleaner = Cleaner(self.commands, settings)
        self._lock = LabLock(settings.lock_dir)

    def new(self) -> HostLab:
        """The lab of one more slot."""
        return HostLab(self._settings, self.commands, self._cleaner, self._lock)

    def directories(self) -> list[Path]:
        """The lab directories that exist below the work directory."""
        return ownership.directories(self._settings.work_dir)
