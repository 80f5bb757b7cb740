"""Removes what there is of a lab, and proves that it is gone."""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab import traces, workspace
from neops_remote_lab.netlab.commands import NetlabCommands, failure
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
        left: list[str] = []
        for attempt in range(self._settings.teardown_retries + 1):
            by_netlab = made.snapshot.exists()
            if by_netlab:
                self._netlab.down(made, force=attempt > 0)
            left = self._remove_traces(made.base, network, by_force=attempt > 0 or not by_netlab)
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
            if traces.docker_is_installed(self._settings.docker):
                stale |= {root / found.lab_folder(root) for found in traces.containers_below(root, self._netlab.docker)}
            stale |= {root / name for name in traces.instance_folders(root)}
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]
        left: list[str] = []
        for base in sorted(stale - {held}):
            logger.warning("sweep: %s was left by an earlier server", base)
            self.end_processes(base.name)
            left += self.take_away(workspace.left_in(base))
        return left

    def _remove_traces(self, base: Path, network: str | None, *, by_force: bool) -> list[str]:
        try:
            left = self._remove_containers(base, network, by_force=by_force)
            if by_force and not left:
                traces.forget_instances(base)
            return left + [f"netlab instance {name}" for name in traces.instances_below(base)]
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"it cannot be told what ({failure(error)})"]

    def _remove_containers(self, base: Path, network: str | None, *, by_force: bool) -> list[str]:
        if not traces.docker_is_installed(self._settings.docker):
            return []
        found = traces.containers_below(base, self._netlab.docker)
        if found and by_force:
            traces.remove_containers(found, self._netlab.docker)
            network = network or DEFAULT_NETWORK
            found = traces.containers_below(base, self._netlab.docker)
        if network and not found and traces.network_is_empty(network, self._netlab.docker):
            traces.remove_network(network, self._netlab.docker)
        return [f"container {container.name}" for container in found]
