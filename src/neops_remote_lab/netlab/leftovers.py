"""What a lab leaves on the host: containers, a network, netlab's instance, processes.

They are found by directory, never by name. Only what belongs to a directory of ours is reported or removed; everything
else on the host is somebody else's.
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
    "the Docker command prints something else than Docker does (podman's does): name Docker's own with --docker"
)
INSTANCES_TIMEOUT: Final = 3.0
"""Seconds to wait for netlab's own lock on its list of instances, as long as netlab itself waits."""

Docker = Callable[[Sequence[str]], str]
"""Runs `docker` with these arguments and returns what it prints."""


class Container(NamedTuple):
    """A container that belongs to a lab of ours."""

    identifier: str
    name: str
    topology_file: Path
    lab: str = ""
    """containerlab's name of the lab."""
    networks: tuple[str, ...] = ()
    node: str = ""
    """netlab's name of the node that it is."""

    def is_below(self, directory: Path) -> bool:
        """Whether it belongs to a lab whose files lie in a directory."""
        # what is written in a label has no symbolic links in it
        return self.topology_file.is_relative_to(directory.resolve())

    def lab_folder(self, root: Path) -> str:
        """The name of the work directory below `root` that it belongs to."""
        return self.topology_file.relative_to(root.resolve()).parts[0]


def docker_is_installed(command: str) -> bool:
    """Whether there can be containers at all."""
    return shutil.which(command) is not None


def all_containers(docker: Docker) -> list[Container]:
    """Containers of all labs, running or not, whoever started them.

    Raises:
        ValueError: the command prints something else than Docker's command does.
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
    )


def network_names(docker: Docker) -> set[str]:
    """The names of Docker's networks."""
    return set(docker(["network", "ls", "--format", "{{.Name}}"]).split())


def may_have_containers(base: Path) -> bool:
    """Whether netlab has got as far as to write a containerlab topology in a work directory.

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


class Instances:
    """netlab's list of the labs that it has started. All methods block."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """`path` tells where netlab keeps the list."""
        self._path = path

    def below(self, directory: Path) -> list[str]:
        """netlab's instances whose directory lies at or below a directory."""
        return [str(name) for name, instance in self.all().items() if _is_below(instance, directory)]

    def directories(self, root: Path) -> list[str]:
        """The names of the labs' directories below `root` that netlab has instances in."""
        real = root.resolve()
        found = [Path(instance["dir"]) for instance in self.all().values() if _is_below(instance, root)]
        return [directory.relative_to(real).parts[0] for directory in found if directory != real]

    def status(self, directory: Path) -> str | None:
        """The state of the instance in a directory, in netlab's own words."""
        states = [instance.get("status") for instance in self.all().values() if _is_below(instance, directory)]
        return str(states[0]) if states else None

    def elsewhere(self, root: Path) -> dict[str, Path]:
        """The directories of instances that do not lie below `root`, by the instance's name."""
        return {
            str(name): Path(str(instance.get("dir", "/")))
            for name, instance in self.all().items()
            if isinstance(instance, dict) and not _is_below(instance, root)
        }

    def forget(self, directory: Path) -> None:
        """Strike instances below a directory off the list, as `netlab down` does at its end."""
        if not self.below(directory):
            return
        path = self._path()
        with FileLock(f"{path}.lock", timeout=INSTANCES_TIMEOUT):
            kept = {name: instance for name, instance in _read(path).items() if not _is_below(instance, directory)}
            scratch = path.with_suffix(".new")
            scratch.write_text(yaml.safe_dump(kept))
            scratch.replace(path)

    def all(self) -> dict[Any, Any]:
        """The whole list. netlab rewrites it in place, so an unlocked reader could see half of it."""
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
