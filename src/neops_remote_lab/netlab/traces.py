"""What a lab leaves on the host: containers, a network, netlab's instance, processes. Found by folder, never by name.

Only what belongs to a folder of ours is reported or removed; everything else on the host is somebody else's.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
import yaml
from filelock import FileLock

from neops_remote_lab.netlab.connector import LAB_ID_VARIABLE, PRELOADED

INSTANCES_FILE: Final = Path(".netlab") / "status.yaml"
CONTAINERS_NOTE: Final = "may-have-containers"
INSTANCES_TIMEOUT: Final = 3.0
"""Seconds to wait for netlab's own lock on its list of instances, as long as netlab itself waits."""

Docker = Callable[[Sequence[str]], str]
"""Runs `docker` with these arguments and returns what it prints."""


class Container(NamedTuple):
    """A container that belongs to a lab of ours."""

    identifier: str
    name: str
    topology_file: Path

    def lab_folder(self, root: Path) -> str:
        """The name of the work folder below `root` that it belongs to."""
        return self.topology_file.relative_to(root.resolve()).parts[0]


def docker_is_installed(command: str) -> bool:
    """Whether there can be containers at all."""
    return shutil.which(command) is not None


def containers_below(folder: Path, docker: Docker) -> list[Container]:
    """Containers, running or not, whose containerlab topology lies below a folder."""
    printed = docker(["ps", "--all", "--no-trunc", "--filter", "label=clab-topo-file", "--format", "{{json .}}"])
    rows = [json.loads(line) for line in printed.splitlines() if line.strip()]
    found = [Container(row["ID"], row["Names"], _topology_file(row["Labels"])) for row in rows]
    real = folder.resolve()  # what netlab and containerlab write down has no symbolic links in it
    return [container for container in found if container.topology_file.is_relative_to(real)]


def _topology_file(labels: str) -> Path:
    pairs = (label.partition("=") for label in labels.split(","))
    return next((Path(value) for key, _, value in pairs if key == "clab-topo-file"), Path())


def may_have_containers(base: Path) -> bool:
    """Whether netlab has got as far as to write a containerlab topology in a work folder.

    That is noted beside it: a `netlab down` by force removes the topology, be the containers gone or not.
    """
    note = base / CONTAINERS_NOTE
    if any(base.glob("*/clab.yml")):
        with suppress(OSError):  # a full disk: the topology itself still tells
            note.touch()
        return True
    return note.exists()


def remove_containers(containers: Sequence[Container], docker: Docker) -> None:
    """Remove containers with force; the caller looks again for what is left."""
    if containers:
        with suppress(subprocess.CalledProcessError):
            docker(["rm", "--force", "--volumes", *(container.identifier for container in containers)])


def management_network(folder: Path) -> str | None:
    """The Docker network that a lab's containerlab topology names."""
    try:
        topology = yaml.safe_load((folder / "clab.yml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    network = topology.get("mgmt", {}).get("network") if isinstance(topology, dict) else None
    return network if isinstance(network, str) else None


def remove_network(network: str, docker: Docker) -> None:
    """Remove a lab's network when no container uses it; Docker itself refuses otherwise."""
    with suppress(subprocess.CalledProcessError):
        docker(["network", "rm", network])


def network_is_empty(network: str, docker: Docker) -> bool:
    """Whether a network is there without any container in it."""
    try:
        found = json.loads(docker(["network", "inspect", network]))
    except (subprocess.CalledProcessError, ValueError):
        return False
    return bool(found) and not found[0].get("Containers")


def instances_below(folder: Path) -> list[str]:
    """netlab's instances whose folder lies at or below a folder."""
    return [str(name) for name, instance in _instances().items() if _is_below(instance, folder)]


def instance_folders(root: Path) -> list[str]:
    """The names of the work folders below `root` that netlab has instances in."""
    folders = [Path(instance["dir"]) for instance in _instances().values() if _is_below(instance, root)]
    return [folder.relative_to(root.resolve()).parts[0] for folder in folders if folder != root.resolve()]


def instance_status(folder: Path) -> str | None:
    """The state of the instance in a folder, in netlab's own words."""
    states = [instance.get("status") for instance in _instances().values() if _is_below(instance, folder)]
    return str(states[0]) if states else None


def forget_instances(folder: Path) -> None:
    """Strike instances below a folder off netlab's list, as `netlab down` does at its end."""
    path = Path.home() / INSTANCES_FILE
    if not instances_below(folder):
        return
    with FileLock(f"{path}.lock", timeout=INSTANCES_TIMEOUT):
        kept = {name: instance for name, instance in _read(path).items() if not _is_below(instance, folder)}
        scratch = path.with_suffix(".new")
        scratch.write_text(yaml.safe_dump(kept))
        scratch.replace(path)


def _instances() -> dict[Any, Any]:
    """netlab's list. It is rewritten in place, so an unlocked reader could see half of it."""
    path = Path.home() / INSTANCES_FILE
    if not path.exists():
        return {}
    with FileLock(f"{path}.lock", timeout=INSTANCES_TIMEOUT):
        return _read(path)


def _read(path: Path) -> dict[Any, Any]:
    try:
        instances = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"netlab's list of instances {path} is damaged: {error}") from None
    return instances if isinstance(instances, dict) else {}


def _is_below(instance: Any, folder: Path) -> bool:
    return isinstance(instance, dict) and Path(str(instance.get("dir", "/"))).is_relative_to(folder.resolve())


def processes_of(lab_id: str) -> list[psutil.Process]:
    """Processes that were started for a lab, by whichever server."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mark = process.environ().get(LAB_ID_VARIABLE)
            if mark == lab_id or (mark == PRELOADED and lab_id in Path(process.cwd()).parts):
                found.append(process)
    return found


def end_processes(processes: Sequence[psutil.Process], grace: float) -> None:
    """End processes, politely first, and wait for their end; `grace` in seconds."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace)
