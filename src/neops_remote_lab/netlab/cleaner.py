"""Looks at the host before a lab starts, removes what there is of a lab, and proves that it is gone."""

import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab import footprint, leftovers, ownership
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import LabInTheWay, failure
from neops_remote_lab.netlab.footprint import Before, Footprint, HostObjects
from neops_remote_lab.netlab.leftovers import Container, Instances
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, abandoned_workspace, remove_workspace

logger = logging.getLogger(__name__)

DEFAULT_INSTANCE: Final = "default"
"""netlab's instance of every lab of containers, or of virtual machines, without its multilab plugin."""
DEFAULT_NETWORK: Final = "netlab_mgmt"
"""netlab's own name for the management network."""
INSTANCE_IN_USE: Final = ('aborting "netlab up" request', "lab instance already running in")
"""What netlab says where the instance that it would start is registered for another directory."""


@dataclass(frozen=True, slots=True)
class _Lab:
    """What is known of a lab that is removed."""

    base: Path
    footprint: Footprint | None
    before: Before | None
    contained: bool
    """Whether it may have had containers."""

    def was_there(self, network: str) -> bool:
        """Whether a network may have been there before the lab's start."""
        return self.before is None or self.before.networks is None or network in self.before.networks


class Cleaner:
    """Removes labs. All methods block."""

    def __init__(self, netlab: NetlabCommands, settings: NetlabSettings) -> None:
        self._netlab = netlab
        self._settings = settings
        self._host = HostObjects(settings.host_root, netlab.run)
        self.instances = Instances(netlab.status_file)
        self._list_unread = False
        """Whether the latest sweep was made without netlab's list of instances."""

    def look_before(self, workspace: Workspace, interrupt: threading.Event) -> None:
        """Refuse a start that would meet what somebody else runs, and note what is there: that stays.

        Args:
            interrupt: ends a question to netlab early, once it is set; InterruptedError is raised then.

        Raises:
            LabInTheWay: somebody else's lab is in the way, or what a crash has left; the message names it.
            What `run_netlab` raises.
        """
        self._netlab.status_file(interrupt)  # a host on which netlab cannot be asked takes no lab
        if self._list_unread and (left := self.sweep((), workspace.base)):
            raise LabInTheWay(f"{', '.join(left)} of an earlier lab could not be removed")
        networks, containers = None, []
        if leftovers.docker_is_installed(self._settings.docker):
            self._netlab.require_docker()
            try:
                containers = leftovers.all_containers(self._netlab.docker)
                networks = frozenset(leftovers.network_names(self._netlab.docker))
            except ValueError as error:
                raise subprocess.SubprocessError(str(error)) from None
            except subprocess.SubprocessError as error:  # a lab of another provider needs no Docker
                logger.info("docker is not asked what is there: %s", failure(error))
        if reason := self._in_the_way(workspace, containers):
            raise LabInTheWay(reason)
        footprint.note_before(workspace.base, Before(networks=networks, objects=frozenset(self._host.all())))

    def _in_the_way(self, workspace: Workspace, containers: Sequence[Container]) -> str | None:
        known = footprint.read_footprint(workspace.base, workspace.directory)
        name, network = (known.name, known.network) if known else (workspace.lab_name, DEFAULT_NETWORK)
        others = _of_others(containers, workspace.base)
        if met := [found for found in others if found.lab == name or (known and found.name in known.containers)]:
            return f"{_whose(met)} would be replaced, because this lab gets the same names"
        if met := [found for found in others if network in found.networks]:
            return f"{_whose(met)} uses the Docker network {network}, which this lab needs"
        return None

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host; None where nothing is known to be in the way.

        Raises:
            subprocess.SubprocessError, OSError, ValueError: it cannot be told.
        """
        if leftovers.docker_is_installed(self._settings.docker):
            self._netlab.require_docker()
        elsewhere = self.instances.elsewhere(self._settings.work_dir)
        return self._foreign_instance(elsewhere[DEFAULT_INSTANCE]) if DEFAULT_INSTANCE in elsewhere else None

    def instance_in_the_way(self, error: BaseException) -> str | None:
        """The lab of somebody else because of which netlab has refused a start; None where it failed otherwise."""
        if isinstance(error, subprocess.CalledProcessError | ValueError):
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            if any(words in str(said) for words in INSTANCE_IN_USE):
                with suppress(subprocess.SubprocessError, OSError, ValueError):
                    elsewhere = self.instances.elsewhere(self._settings.work_dir)
                    directory = elsewhere.get(DEFAULT_INSTANCE) or next(iter(elsewhere.values()), None)
                    return self._foreign_instance(directory) if directory else None
        return None

    def _foreign_instance(self, directory: Path) -> str:
        logger.warning("netlab's list has a lab in %s, which is not ours", directory)
        if not directory.is_dir():
            return (
                f"netlab's list of instances has a lab in a directory {directory.name!r} that is gone: "
                "`netlab status --reset`, as the server's user, forgets it"
            )
        return (
            f"somebody else's lab runs on this host, in a directory {directory.name!r}: `netlab status --all` shows it"
        )

    def end_processes(self, lab_id: str) -> None:
        """End what an earlier server has started for a lab and not waited for."""
        leftovers.end_processes(leftovers.processes_of(lab_id), self._settings.kill_grace)

    def remove_lab(self, workspace: Workspace) -> list[str]:
        """Remove all that there is of a lab; what is left after the retries."""
        base = workspace.base
        if os.path.lexists(base) and ownership.proof(base) is None:
            return [f"a directory {base.name} that has no record of this server"]
        lab = _Lab(
            base,
            footprint.read_footprint(base, workspace.directory),
            footprint.read_before(base),
            leftovers.may_have_containers(base),
        )
        left: list[str] = []
        for attempt in range(self._settings.teardown_retries + 1):
            left = self._attempt(workspace, lab, attempt)
            if not left:
                remove_workspace(base)
                left = [f"the directory {base.name}"] if os.path.lexists(base) else []
            if not left:
                break
            logger.warning("lab %s: %s left after attempt %d", workspace.lab_id, ", ".join(left), attempt + 1)
        return left

    def _attempt(self, workspace: Workspace, lab: _Lab, attempt: int) -> list[str]:
        try:
            by_netlab = self._may_be_ended_by_netlab(workspace, lab)
            if by_netlab:
                self._netlab.down(workspace, force=attempt > 0)
            return self._remove_leftovers(lab, by_force=attempt > 0 or not by_netlab)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"something that cannot be told, because the host cannot be asked ({failure(error)}),"]

    def _may_be_ended_by_netlab(self, workspace: Workspace, lab: _Lab) -> bool:
        """Whether `netlab down` would end this lab and nothing else.

        It goes by names: it destroys whatever lab has the name of this one, and the bridges that this one uses.
        """
        if not workspace.snapshot.exists() or not self.instances.below(lab.base):
            return False
        if (known := lab.footprint) is None:
            return True
        bridges = {found.name for found in lab.before.objects if found.kind == "bridge"} if lab.before else set()
        containers = self._all_containers(expected=lab.contained)
        if known.bridges & bridges or any(found.lab == known.name for found in _of_others(containers, lab.base)):
            return False
        if lab.was_there(known.network) and (workspace.directory / "clab.yml").exists():
            footprint.spare_network(workspace.directory)
        return True

    def sweep(self, directories: Sequence[Path], held: Path | None) -> list[str]:
        """Remove what crashes have left below the work directory, apart from the directory that is held; what resists.

        Containers and netlab's instances are looked for; directories of labs are those that are named. What has no
        record of ours, or belongs to a process that lives, stays. Where there is no other trace of a lab, netlab need
        not even be installed: its list of instances is then read before the next start.
        """
        root = self._settings.work_dir
        stale = set(directories)
        try:
            containers = [found for found in self._all_containers(expected=False) if found.is_below(root)]
            stale |= {root / found.lab_folder(root) for found in containers}
            stale = {base for base in stale - {held} if ownership.is_left(base, self._settings.lab_host)}
            self._list_unread = not (stale or self._can_read_list())
            if not self._list_unread:
                stale |= {root / name for name in self.instances.directories(root)}
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [f"something that cannot be told, because the host cannot be asked ({failure(error)}),"]
        left: list[str] = []
        for base in sorted(stale - {held}):
            if ownership.is_left(base, self._settings.lab_host):
                logger.warning("sweep: %s was left by an earlier server", base)
                self.end_processes(base.name)
                left += self.remove_lab(abandoned_workspace(base))
        with suppress(OSError):  # what cannot be tidied now is tidied by the next sweep
            ownership.tidy(root)
        return left

    def _can_read_list(self) -> bool:
        try:
            self._netlab.status_file()
        except (subprocess.SubprocessError, OSError) as error:
            logger.info("netlab's list of instances is read later: netlab cannot be asked: %s", failure(error))
            return False
        return True

    def _remove_leftovers(self, lab: _Lab, *, by_force: bool) -> list[str]:
        left = self._remove_containers(lab, by_force=by_force)
        if by_force and not left:
            for found in self._host.left_of(lab.footprint, lab.before):
                self._host.remove(found)
            self.instances.forget(lab.base)
        left += sorted(map(str, self._host.left_of(lab.footprint, lab.before)))
        return left + [f"netlab instance {name}" for name in self.instances.below(lab.base)]

    def _remove_containers(self, lab: _Lab, *, by_force: bool) -> list[str]:
        found = self._containers_of(lab)
        if found and by_force:
            leftovers.remove_containers(found, self._netlab.docker)
            found = self._containers_of(lab)
        left = [f"container {container.name}" for container in found]
        network = lab.footprint.network if lab.footprint else None
        if (
            network
            and not found
            and not lab.was_there(network)
            and leftovers.network_is_empty(network, self._netlab.docker)
        ):
            leftovers.remove_network(network, self._netlab.docker)
            left += [f"network {network}"] if leftovers.network_is_empty(network, self._netlab.docker) else []
        return left

    def _containers_of(self, lab: _Lab) -> list[Container]:
        return [found for found in self._all_containers(expected=lab.contained) if found.is_below(lab.base)]

    def _all_containers(self, *, expected: bool) -> list[Container]:
        """Containers of all labs. Where none of ours are expected, Docker need not even run."""
        if not leftovers.docker_is_installed(self._settings.docker):
            return []
        try:
            return leftovers.all_containers(self._netlab.docker)
        except subprocess.SubprocessError as error:
            if expected:
                raise
            logger.debug("docker is not asked for containers: %s", failure(error))
            return []


def _of_others(containers: Sequence[Container], base: Path) -> list[Container]:
    return [found for found in containers if not found.is_below(base)]


def _whose(containers: Sequence[Container]) -> str:
    labs = ", ".join(sorted({found.lab or "without a name" for found in containers}))
    names = ", ".join(sorted(found.name for found in containers)[:MAX_NAMED])
    return f"somebody else's lab {labs} (containers {names})"


MAX_NAMED: Final = 5
"""Containers that a sentence names."""
