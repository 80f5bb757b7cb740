"""Checks the host before a lab starts, removes a lab completely, and verifies that nothing is left of it."""

import logging
import os
import subprocess
import threading
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab import footprint, lab_network, leftovers, ownership
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import LabInTheWay, failure
from neops_remote_lab.netlab.footprint import Baseline, Footprint, HostObjects
from neops_remote_lab.netlab.isolation import STATUS_FILE
from neops_remote_lab.netlab.leftovers import Container, Instances
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, abandoned_workspace, remove_workspace

logger = logging.getLogger(__name__)

DEFAULT_INSTANCE: Final = "default"
"""netlab's instance name of every container or VM lab, unless its multilab plugin is used."""
DEFAULT_NETWORK: Final = "netlab_mgmt"
"""netlab's default name of the management network."""
INSTANCE_IN_USE: Final = ('aborting "netlab up" request', "lab instance already running in")
"""netlab's messages when its instance is already registered for another directory."""
STARTED: Final = "started"
"""netlab's status of an instance whose nodes are running and configured."""
MAX_NAMED: Final = 5
"""Maximum number of containers named in a message."""
UNKNOWN_LEFTOVERS: Final = "something unknown, because the host cannot be queried ({reason}),"
"""Reported in place of leftovers when listing them fails."""


@dataclass(frozen=True, slots=True)
class _Lab:
    """What is known about a lab that is being removed."""

    base: Path
    footprint: Footprint | None
    baseline: Baseline | None
    contained: bool
    """Whether it may have containers."""

    def may_share(self, network: str) -> bool:
        """Whether a network may have existed before the lab's start, so that it must be kept."""
        return self.baseline is None or self.baseline.networks is None or network in self.baseline.networks


class Cleaner:
    """Removes labs. All methods block."""

    def __init__(self, netlab: NetlabCommands, settings: NetlabSettings) -> None:
        self._netlab = netlab
        self._settings = settings
        self._host = HostObjects(settings.host_root, netlab.run)
        self._shared_instances = Instances(netlab.status_file)
        self._sweeping = threading.Lock()
        self._list_unread = False
        """Whether the latest sweep could not read netlab's list of instances."""

    def instances_of(self, base: Path) -> Instances:
        """netlab's list of instances that has the lab in a directory: its own, if it runs beside others."""
        if ownership.number_of(base) is None:
            return self._shared_instances
        return Instances(lambda: base / STATUS_FILE)

    def check_before_start(self, workspace: Workspace, held: Collection[Path], interrupt: threading.Event) -> None:
        """Refuse a start that would collide with another lab, and record what exists on the host, so that it is kept.

        Args:
            held: the directories of the labs of this process.
            interrupt: once set, aborts a running netlab command with InterruptedError.

        Raises:
            LabInTheWay: a lab that is not ours, or the leftovers of a crash, would collide; the message names them.
            The exceptions of `run_netlab`.
        """
        self._netlab.status_file(interrupt)  # if this fails, the host's state is unknown and no lab may start
        if self._list_unread and (remaining := self.sweep((), held)):
            raise LabInTheWay(f"{', '.join(remaining)} of an earlier lab could not be removed")
        networks, containers = None, []
        if leftovers.docker_is_installed(self._settings.docker):
            self._netlab.require_docker()
            try:
                containers = leftovers.all_containers(self._netlab.docker)
                networks = frozenset(leftovers.network_names(self._netlab.docker))
            except ValueError as error:
                raise subprocess.SubprocessError(str(error)) from None
            except subprocess.SubprocessError as error:  # a lab of another provider needs no Docker
                logger.info(
                    "existing containers and networks are not checked, because docker fails: %s", failure(error)
                )
        if reason := self._collision(workspace, containers) or self._collision_of_addresses(workspace):
            raise LabInTheWay(reason)
        footprint.write_baseline(workspace.base, Baseline(networks=networks, objects=frozenset(self._host.all())))

    def _collision(self, workspace: Workspace, containers: Sequence[Container]) -> str | None:
        known = footprint.read_footprint(workspace.base, workspace.directory)
        name, network = (known.name, known.network) if known else (workspace.lab_name, DEFAULT_NETWORK)
        others = _of_others(containers, workspace.base)
        if met := [found for found in others if found.lab == name or (known and found.name in known.containers)]:
            return f"{_whose(met)} would be replaced, because this lab gets the same names"
        if met := [found for found in others if network in found.networks]:
            return f"{_whose(met)} uses the Docker network {network}, which this lab needs"
        return None

    def _collision_of_addresses(self, workspace: Workspace) -> str | None:
        """Why a lab that should run beside others cannot: its addresses are not free, or another must run alone."""
        if (number := ownership.number_of(workspace.base)) is None:
            return None
        subnet = self._netlab.numbers.subnet(number)
        for found in lab_network.in_use(subnet):
            return f"the interface {found.interface} of the host uses {found.network}, which this lab needs ({subnet})"
        return self.in_the_way()

    def require_own_containers(self, workspace: Workspace) -> None:
        """Check that all containers with the name of a lab that runs beside others are its own.

        Raises:
            LabInTheWay: containers of another lab have that name.
            The exceptions of `run_netlab`.
        """
        if ownership.number_of(workspace.base) is None:
            return
        others = _of_others(self._all_containers(expected=True), workspace.base)
        if met := [found for found in others if found.lab == workspace.lab_name]:
            raise LabInTheWay(f"{_whose(met)} has the name of this lab")

    def runs(self, workspace: Workspace) -> bool:
        """Whether every node of a lab that runs beside others is running. False if that is unknown."""
        known = footprint.read_footprint(workspace.base, workspace.directory)
        try:
            status = self.instances_of(workspace.base).status(workspace.directory)
            containers = self._all_containers(expected=True)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            logger.warning("lab %s: its state could not be determined: %s", workspace.lab_id, failure(error))
            return False
        running = {found.name for found in containers if found.is_below(workspace.base) and found.is_running}
        return known is not None and status == STARTED and known.containers <= running

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host; None if no reason is known.

        Several labs of a server may run beside one that somebody started by hand, unless containerlab needs a lock: it
        would not be taken for that lab.

        Raises:
            subprocess.SubprocessError, OSError, ValueError: netlab or Docker could not be queried.
        """
        if leftovers.docker_is_installed(self._settings.docker):
            self._netlab.require_docker()
        several = self._settings.several_labs
        if several and self._netlab.provider_lock.path is None:
            return None
        elsewhere = self._shared_instances.elsewhere(self._settings.work_dir)
        met = [directory for name, directory in elsewhere.items() if several or name == DEFAULT_INSTANCE]
        if several:  # a stale entry is not in their way
            met = [directory for directory in met if directory.is_dir()]
        return self._foreign_instance(met[0]) if met else None

    def instance_in_the_way(self, error: BaseException) -> str | None:
        """Name the foreign lab that made netlab refuse a start; None if the start failed for another reason."""
        if isinstance(error, subprocess.CalledProcessError | ValueError):
            message = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
            if any(words in str(message) for words in INSTANCE_IN_USE):
                with suppress(subprocess.SubprocessError, OSError, ValueError):
                    elsewhere = self._shared_instances.elsewhere(self._settings.work_dir)
                    directory = elsewhere.get(DEFAULT_INSTANCE) or next(iter(elsewhere.values()), None)
                    return self._foreign_instance(directory) if directory else None
        return None

    def _foreign_instance(self, directory: Path) -> str:
        logger.warning("netlab's list of instances has a lab in %s, which is not ours", directory)
        if not directory.is_dir():
            return (
                f"netlab's list of instances has a lab in a directory {directory.name!r} that no longer exists: "
                "run `netlab status --reset` as the server's user to remove the entry"
            )
        return (
            f"somebody else's lab runs on this host, in a directory {directory.name!r}: `netlab status --all` shows it"
        )

    def end_processes(self, lab_id: str) -> None:
        """End processes that an earlier server started for a lab and that outlived it."""
        leftovers.end_processes(leftovers.processes_of(lab_id), self._settings.kill_grace)

    def remove_lab(self, workspace: Workspace) -> list[str]:
        """Remove a lab completely. Returns what is left after the retries."""
        base = workspace.base
        if os.path.lexists(base) and ownership.proof(base) is None:
            return [f"a directory {base.name} that has no record of this server"]
        lab = _Lab(
            base,
            footprint.read_footprint(base, workspace.directory),
            footprint.read_baseline(base),
            leftovers.may_have_containers(base),
        )
        remaining: list[str] = []
        for attempt in range(self._settings.teardown_retries + 1):
            remaining = self._attempt(workspace, lab, attempt)
            if not remaining:
                remove_workspace(base)
                remaining = [f"the directory {base.name}"] if os.path.lexists(base) else []
            if not remaining:
                break
            logger.warning("lab %s: %s left after attempt %d", workspace.lab_id, ", ".join(remaining), attempt + 1)
        return remaining

    def _attempt(self, workspace: Workspace, lab: _Lab, attempt: int) -> list[str]:
        try:
            by_netlab = self._netlab_may_end(workspace, lab)
            if by_netlab:
                with self._unlocked_commands(lab.base):
                    self._netlab.down(workspace, force=attempt > 0)
            return self._remove_leftovers(lab, by_force=attempt > 0 or not by_netlab)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [UNKNOWN_LEFTOVERS.format(reason=failure(error))]

    def _unlocked_commands(self, base: Path) -> AbstractContextManager[None]:
        """While netlab commands of a lab run that do not lock containerlab: the lab was started to run alone."""
        return self._netlab.provider_lock.held() if ownership.number_of(base) is None else nullcontext()

    def _netlab_may_end(self, workspace: Workspace, lab: _Lab) -> bool:
        """Whether `netlab down` would destroy this lab and nothing else.

        netlab goes by names: it destroys any lab with this lab's name, and the bridges that this lab uses.
        """
        if not workspace.snapshot.exists() or not self.instances_of(lab.base).below(lab.base):
            return False
        if (known := lab.footprint) is None:
            return True
        bridges = {found.name for found in lab.baseline.objects if found.kind == "bridge"} if lab.baseline else set()
        containers = self._all_containers(expected=lab.contained)
        if known.bridges & bridges or any(found.lab == known.name for found in _of_others(containers, lab.base)):
            return False
        if lab.may_share(known.network) and (workspace.directory / "clab.yml").exists():
            footprint.protect_network(workspace.directory)
        return True

    def sweep(self, directories: Sequence[Path], held: Collection[Path]) -> list[str]:
        """Remove the leftovers of crashes below the work directory. Returns what could not be removed.

        The sweep finds containers and netlab instances by itself. Directories without our record, and those of a
        process that is still alive, are kept. If there are no other leftovers, netlab need not be installed: its list
        of instances is then read before the next start.

        Args:
            directories: lab directories to check.
            held: the directories of the labs of this process, which are kept.
        """
        with self._sweeping:  # labs of the same process would hinder each other
            return self._sweep(directories, held)

    def _sweep(self, directories: Sequence[Path], held: Collection[Path]) -> list[str]:
        root = self._settings.work_dir
        stale = set(directories)
        try:
            containers = [found for found in self._all_containers(expected=False) if found.is_below(root)]
            stale |= {root / found.lab_directory(root) for found in containers}
            stale = {base for base in stale.difference(held) if ownership.is_abandoned(base, self._settings.lab_host)}
            self._list_unread = not (stale or self._can_read_list())
            if not self._list_unread:
                stale |= {root / name for name in self._shared_instances.directories(root)}
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return [UNKNOWN_LEFTOVERS.format(reason=failure(error))]
        remaining: list[str] = []
        for base in sorted(stale.difference(held)):
            if ownership.is_abandoned(base, self._settings.lab_host):
                logger.warning("sweep: removing %s, which an earlier server left behind", base)
                self.end_processes(base.name)
                remaining += self.remove_lab(abandoned_workspace(base))
        with suppress(OSError):  # the next sweep tries again
            ownership.tidy(root)
        return remaining

    def _can_read_list(self) -> bool:
        try:
            self._netlab.status_file()
        except (subprocess.SubprocessError, OSError) as error:
            logger.info(
                "netlab's list of instances is read before the next start, because netlab fails: %s", failure(error)
            )
            return False
        return True

    def _remove_leftovers(self, lab: _Lab, *, by_force: bool) -> list[str]:
        with self._netlab.provider_lock.held() if by_force else nullcontext():
            return self._remove_remaining(lab, by_force=by_force)

    def _remove_remaining(self, lab: _Lab, *, by_force: bool) -> list[str]:
        instances = self.instances_of(lab.base)
        remaining = self._remove_containers(lab, by_force=by_force)
        if by_force and not remaining:
            for found in self._host.leftovers_of(lab.footprint, lab.baseline):
                self._host.remove(found)
            instances.remove(lab.base)
        remaining += sorted(map(str, self._host.leftovers_of(lab.footprint, lab.baseline)))
        return remaining + [f"netlab instance {name}" for name in instances.below(lab.base)]

    def _remove_containers(self, lab: _Lab, *, by_force: bool) -> list[str]:
        found = self._containers_of(lab)
        if found and by_force:
            leftovers.remove_containers(found, self._netlab.docker)
            found = self._containers_of(lab)
        remaining = [f"container {container.name}" for container in found]
        network = lab.footprint.network if lab.footprint else None
        if (
            network
            and not found
            and not lab.may_share(network)
            and leftovers.network_is_empty(network, self._netlab.docker)
        ):
            leftovers.remove_network(network, self._netlab.docker)
            remaining += [f"network {network}"] if leftovers.network_is_empty(network, self._netlab.docker) else []
        return remaining

    def _containers_of(self, lab: _Lab) -> list[Container]:
        return [found for found in self._all_containers(expected=lab.contained) if found.is_below(lab.base)]

    def _all_containers(self, *, expected: bool) -> list[Container]:
        """The containers of all labs on the host. If none of ours are expected, Docker need not be running."""
        if not leftovers.docker_is_installed(self._settings.docker):
            return []
        try:
            return leftovers.all_containers(self._netlab.docker)
        except subprocess.SubprocessError as error:
            if expected:
                raise
            logger.debug("containers are not listed, because docker fails: %s", failure(error))
            return []


def _of_others(containers: Sequence[Container], base: Path) -> list[Container]:
    return [found for found in containers if not found.is_below(base)]


def _whose(containers: Sequence[Container]) -> str:
    labs = ", ".join(sorted({found.lab or "without a name" for found in containers}))
    names = ", ".join(sorted(found.name for found in containers)[:MAX_NAMED])
    return f"somebody else's lab {labs} (containers {names})"
