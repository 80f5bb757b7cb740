"""Finds and removes a lab's containers, network, netlab instance and processes.

They are identified by the lab's directory, never by name. Nothing else on the host is reported or removed.
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

from neops_remote_lab.netlab.process import LAB_ID_VARIABLE, PRELOADED

CONTAINERS_FORMAT: Final = ("ps", "--all", "--no-trunc", "--filter", "label=clab-topo-file", "--format", "{{json .}}")
CONTAINERS_NOTE: Final = "may-have-containers"
NOT_DOCKER: Final = (
    "the output of the Docker command is not Docker's (podman's differs, for example): name Docker's with --docker"
)
INSTANCES_TIMEOUT: Final = 3.0
"""Seconds to wait for netlab's lock on its list of instances, as long as netlab itself waits."""

Docker = Callable[[Sequence[str]], str]
"""Runs `docker` with these arguments and returns its output."""


class Container(NamedTuple):
    """A container that containerlab created."""

    identifier: str
    name: str
    topology_file: Path
    lab: str = ""
    """containerlab's name of the lab."""
    networks: tuple[str, ...] = ()
    node: str = ""
    """netlab's name of the node that it is."""
    image: str = ""
    status: str = ""
    """Its state, in Docker's words."""

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self.status.startswith("Up")

    def is_below(self, directory: Path) -> bool:
        """Whether the container belongs to a lab whose files are below a directory."""
        # containerlab resolves symbolic links before it writes the path into the label
        return self.topology_file.is_relative_to(directory.resolve())

    def lab_directory(self, root: Path) -> str:
        """The name of the lab directory below `root` that the container belongs to."""
        return self.topology_file.relative_to(root.resolve()).parts[0]


def docker_is_installed(command: str) -> bool:
    """Whether the Docker command exists: without it there are no containers to look for."""
    return shutil.which(command) is not None


def all_containers(docker: Docker) -> list[Container]:
    """The containers of all labs on the host, running or not, ours or not.

    Raises:
        ValueError: the output is not Docker's.
    """
    printed = docker(CONTAINERS_FORMAT)
    try:
        return [_container(json.loads(line)) for line in printed.splitlines() if line.strip()]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(NOT_DOCKER) from None


def _container(row: dict[str, Any]) -> Container:
    pairs = (label.partition("=") for label in row["Labels"].split(","))
    labels = {key: value for key, _, value in pairs}
    return Container(
        row["ID"],
        row["Names"],
        Path(labels.get("clab-topo-file", "")),
        labels.get("containerlab", ""),
        tuple(row.get("Networks", "").split(",")),
        labels.get("clab-node-name", row["Names"]),
        row.get("Image", ""),
        row.get("Status", ""),
    )


def network_names(docker: Docker) -> set[str]:
    """The names of all Docker networks."""
    return set(docker(["network", "ls", "--format", "{{.Name}}"]).split())


def may_have_containers(base: Path) -> bool:
    """Whether netlab has written a containerlab topology in a lab's directory.

    The answer is saved in a file, because `netlab down --force` deletes the topology even if containers remain.
    """
    note = base / CONTAINERS_NOTE
    if any(base.glob("*/clab.yml")):
        with suppress(OSError):  # on a full disk, the topology is still there
            note.touch()
        return True
    return note.exists()


def remove_containers(containers: Sequence[Container], docker: Docker) -> None:
    """Try to remove containers, running or not. The caller checks what is left."""
    if containers:
        with suppress(subprocess.CalledProcessError):
            docker(["rm", "--force", "--volumes", *(container.identifier for container in containers)])


def remove_network(network: str, docker: Docker) -> None:
    """Remove a network. Docker refuses while a container uses it."""
    with suppress(subprocess.CalledProcessError):
        docker(["network", "rm", network])


def network_is_empty(network: str, docker: Docker) -> bool:
    """Whether a network exists and no container uses it."""
    try:
        found = json.loads(docker(["network", "inspect", network]))
    except (subprocess.CalledProcessError, ValueError):
        return False
    return bool(found) and not found[0].get("Containers")


class Instances:
    """netlab's list of the labs that it started. All methods block."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """`path` returns the path of the list."""
        self._path = path

    def below(self, directory: Path) -> list[str]:
        """The names of the instances in or below a directory."""
        return [str(name) for name, instance in self.all().items() if _is_below(instance, directory)]

    def directories(self, root: Path) -> list[str]:
        """The names of the directories below `root` that have instances."""
        real = root.resolve()
        found = [Path(instance["dir"]) for instance in self.all().values() if _is_below(instance, root)]
        return [directory.relative_to(real).parts[0] for directory in found if directory != real]

    def status(self, directory: Path) -> str | None:
        """The state of the instance in a directory, as netlab calls it; None if there is no instance."""
        states = [instance.get("status") for instance in self.all().values() if _is_below(instance, directory)]
        return str(states[0]) if states else None

    def elsewhere(self, root: Path) -> dict[str, Path]:
        """The directories of all instances that are not below `root`, by instance name."""
        return {
            str(name): Path(str(instance.get("dir", "/")))
            for name, instance in self.all().items()
            if isinstance(instance, dict) and not _is_below(instance, root)
        }

    def remove(self, directory: Path) -> None:
        """Remove the instances below a directory from the list, as a successful `netlab down` does."""
        if not self.below(directory):
            return
        path = self._path()
        with FileLock(f"{path}.lock", timeout=INSTANCES_TIMEOUT):
            kept = {name: instance for name, instance in _read(path).items() if not _is_below(instance, directory)}
            scratch = path.with_suffix(".new")
            scratch.write_text(yaml.safe_dump(kept))
            scratch.replace(path)

    def all(self) -> dict[Any, Any]:
        """The whole list, read under netlab's lock, because netlab rewrites the file in place."""
        path = self._path()
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


def _is_below(instance: Any, directory: Path) -> bool:
    return isinstance(instance, dict) and Path(str(instance.get("dir", "/"))).is_relative_to(directory.resolve())


def processes_of(lab_id: str) -> list[psutil.Process]:
    """The processes that this or an earlier server started for a lab."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mark = process.environ().get(LAB_ID_VARIABLE)
            if mark == lab_id or (mark == PRELOADED and lab_id in Path(process.cwd()).parts):
                found.append(process)
    return found


def end_processes(processes: Sequence[psutil.Process], grace: float) -> None:
    """Send SIGTERM, after `grace` seconds SIGKILL, and wait until the processes have ended."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=grace)
