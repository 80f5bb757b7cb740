"""Removes what there is of a lab, and proves that it is gone."""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab import traces, workspace
from neops_remote_lab.netlab.commands import NetlabCommands, failure
from neops_remote_lab.netlab.traces import Container
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.settings import Settings

logger = logging.getLogger(__name__)

DEFAULT_NETWORK: Final = "netlab_mgmt"
"""netlab's own name for the management network, where a crash has taken the file that names it."""


class Cleaner:
    """Takes labs away. All methods block."""

    def __init__(self, netlab: NetlabCommands, settings: Settings) -> None:
        self._netlab = netlab
        self._settings = settings

    def end_processes(self, lab_id: str) -> None:
        """End what an earlier server has started for a lab and not waited for."""
        traces.end_processes(traces.processes_of(lab_id), self._settings.kill_grace)

    def take_away(self, made: Workspace) -> list[str]:
        """Remove all that there is of a lab; what is left after the retries."""
        network = traces.management_network(made.folder)
        contained = traces.may_have_containers(made.base)
        left: list[str] = []
        for attempt in range(self._settings.teardown_retries + 1):
            by_netlab = made.snapshot.exists()
            if by_netlab:
                self._netlab.down(made, force=attempt > 0)
            left = self._remove_traces(made.base, network, contained, by_force=attempt > 0 or not by_netlab)
            if not left:
                workspace.remove(made.base)
                break
            logger.warning("lab %s: %s left after attempt %d", made.lab_id, ", ".join(left), attempt + 1)
        return left

    def sweep(self, folders: Sequence[Path], held: Path | None) -> list[str]:
        """Remove what crashes have left below the work folder, apart from the folder that is held; what resists.

        Containers and netlab's instances are looked for; work folders are those that are named.
        """
        root = self._settings.work_dir
        stale = set(folders)
        try:
            containers = self._containers(root, expected=False)
            stale |= {root / found.lab_folder(root) for found in containers}
            stale |= {root / name for name in traces.instance_folders(root)}
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]
        left: list[str] = []
        for base in sorted(stale - {held}):
            logger.warning("sweep: %s was left by an earlier server", base)
            self.end_processes(base.name)
            left += self.take_away(workspace.left_in(base))
        return left

    def _remove_traces(self, base: Path, network: str | None, contained: bool, *, by_force: bool) -> list[str]:
        try:
            left = self._remove_containers(base, network, contained, by_force=by_force)
            if by_force and not left:
                traces.forget_instances(base)
            return left + [f"netlab instance {name}" for name in traces.instances_below(base)]
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]

    def _remove_containers(self, base: Path, network: str | None, contained: bool, *, by_force: bool) -> list[str]:
        found = self._containers(base, expected=contained)
        if found and by_force:
            traces.remove_containers(found, self._netlab.docker)
            network = network or DEFAULT_NETWORK
            found = self._containers(base, expected=contained)
        if network and not found and traces.network_is_empty(network, self._netlab.docker):
            traces.remove_network(network, self._netlab.docker)
        return [f"container {container.name}" for container in found]

    def _containers(self, folder: Path, *, expected: bool) -> list[Container]:
        """Containers of labs below a folder. Where none are expected, Docker need not even run."""
        if not traces.docker_is_installed(self._settings.docker):
            return []
        try:
            return traces.containers_below(folder, self._netlab.docker)
        except subprocess.SubprocessError as error:
            if expected:
                raise
            logger.debug("docker is not asked for containers: %s", failure(error))
            return []
