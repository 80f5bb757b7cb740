"""The labs of this host, which share what they know of the host."""

from pathlib import Path

from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.artifacts import ArtifactCollector
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.settings import NetlabSettings


class HostLabs:
    """Creates the lab of each slot.

    Attributes:
        commands: the commands of netlab and Docker, shared by all labs, with one preloaded netlab.
        artifacts: collects the artifacts of any lab.
    """

    def __init__(self, settings: NetlabSettings) -> None:
        self._settings = settings
        self.commands = NetlabCommands(settings)
        self.artifacts = ArtifactCollector(self.commands, settings)

    def of_slot(self, slot: int) -> HostLab:  # noqa: ARG002 - there is one slot
        """The lab of a slot."""
        return HostLab(self._settings, self.commands)

    def directories(self) -> list[Path]:
        """The lab directories that exist below the work directory."""
        return ownership.directories(self._settings.work_dir)
