"""The netlab and Docker commands that a lab needs, run with the configured limits."""

import json
import logging
import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
from pydantic import TypeAdapter

from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab import up_arguments
from neops_remote_lab.netlab.failures import GOOD_NAME, RejectionClassifier, failure
from neops_remote_lab.netlab.inventory import Inventory, read_devices, read_lab
from neops_remote_lab.netlab.isolation import FACTS, Isolation
from neops_remote_lab.netlab.lab_numbers import LabNumbers
from neops_remote_lab.netlab.leftovers import NOT_DOCKER
from neops_remote_lab.netlab.process import PreloadedNetlab, run_docker, run_netlab, start_docker
from neops_remote_lab.netlab.provider_lock import ProviderLock
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.status_file import StatusFile
from neops_remote_lab.netlab.workspace import Workspace

logger = logging.getLogger(__name__)

ACCEPTED: Final = "Checking virtualization provider installation"
"""netlab prints this after it accepted the topology and before it starts or registers anything."""
SNAPSHOT_WRITTEN: Final = "into netlab.snapshot.pickle"
"""netlab prints this after it wrote its snapshot completely; the devices can be read from then on."""
_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])
SNAPSHOT_POLL: Final = 0.02
"""Seconds between two checks whether netlab has written its snapshot."""


class Prepared(NamedTuple):
    """The result of `netlab create`: devices and number of links."""

    devices: list[DeviceInfoDto]
    links: int


class Limits(NamedTuple):
    """Limits of `netlab create`."""

    timeout: float
    """Seconds."""
    memory: int | None = None
    """Maximum address space, in bytes."""
    niceness: int = 0


class NetlabCommands:
    """Runs netlab in the work directory of a lab. All methods block.

    Attributes:
        numbers: the numbers of the labs of this process, if they run beside each other.
        provider_lock: the lock for changes of the provider's objects without netlab.
        status_file: netlab's list of instances on this host.
    """

    def __init__(self, settings: NetlabSettings) -> None:
        self._settings = settings
        self.numbers = LabNumbers(settings.lock_dir, settings.work_dir, settings.lab_network)
        self.provider_lock = ProviderLock(settings)
        self._preloaded = PreloadedNetlab(settings.netlab)
        self._is_docker = False
        self._arguments = up_arguments.split(settings.netlab_up_args)
        self._classifier = RejectionClassifier(self._create_good)
        self._ended = threading.Event()
        self.status_file = StatusFile(settings, self._classifier, self._ended)

    def preload(self) -> None:
        """Begin to load the netlab process that will start the next lab. Returns before it is loaded."""
        if self._settings.preload:
            self._preloaded.load()

    def stop_preloading(self) -> None:
        """End the preloaded netlab; later calls of `preload` do nothing."""
        self._preloaded.close()

    def cancel_queries(self) -> None:
        """Abort current and future netlab commands that only query the host. Never blocks."""
        self._ended.set()

    def create(self, workspace: Workspace, interrupt: threading.Event) -> Prepared:
        """Generate a lab's configuration files, at low priority and with limited memory and time. Starts nothing.

        Raises:
            TopologyRejected: netlab rejects the topology (the message is netlab's), or the lab would share something
                with other labs of this host.
            TimeoutError, MemoryError: netlab exceeded a limit.
            LabInTheWay: too many labs of this host are running or prepared.
            The other exceptions of `run_netlab`.
        """
        made = self._prepare(workspace, self._check_limits, interrupt, spare=self._settings.slots)
        return Prepared(made.devices, made.links)

    def prepare(self, workspace: Workspace, interrupt: threading.Event) -> list[DeviceInfoDto]:
        """The devices of a lab that is about to start beside others. Unless it is prepared, it is prepared now.

        A lab that runs alone on its host needs no preparation: `netlab up` generates its files. Raises as `create`.
        """
        if workspace.devices.exists():
            return _DEVICES.validate_json(workspace.devices.read_bytes())
        return self._prepare(workspace, Limits(self._settings.up_timeout), interrupt).devices

    @property
    def _check_limits(self) -> Limits:
        settings = self._settings
        return Limits(settings.create_timeout, settings.max_create_bytes, settings.create_niceness)

    def _prepare(
        self, workspace: Workspace, limits: Limits, interrupt: threading.Event, *, spare: int = 0
    ) -> Inventory:
        isolation = self._isolate(workspace, spare) if self._settings.several_labs else None
        what = self._topology_arguments(workspace) + (isolation.arguments() if isolation else [])
        try:
            self._create(workspace.directory, what, workspace.log, workspace.lab_id, limits=limits, interrupt=interrupt)
        except subprocess.CalledProcessError as error:
            self._classifier.raise_cause(error, interrupt, memory=limits.memory)
        except subprocess.TimeoutExpired as error:
            if limits.memory is None:  # no check, but a start
                raise
            limit = f"{error.timeout:g} s, the limit that --create-timeout sets on the lab host"
            raise TimeoutError(f"netlab took longer than {limit}, to check this topology") from None
        with _invalid_output_as_failure():
            made = read_lab(
                lambda arguments: self._inspect(workspace, arguments, interrupt, limits.niceness),
                FACTS if isolation else "",
            )
        if isolation:
            isolation.require(workspace.directory, made.facts)
        workspace.devices.write_bytes(_DEVICES.dump_json(made.devices))
        return made

    def _isolate(self, workspace: Workspace, spare: int) -> Isolation:
        number = self.numbers.take(workspace.base, spare=spare)
        return Isolation(workspace.lab_name, number, self.numbers.subnet(number), self.provider_lock.path)

    def _create(
        self, directory: Path, what: list[str], log: Path, lab_id: str, *, limits: Limits, interrupt: threading.Event
    ) -> None:
        run_netlab(
            ["create", *what],
            directory=directory,
            timeout=limits.timeout,
            command=self._settings.netlab,
            log=log,
            kill_grace=self._settings.kill_grace,
            memory=limits.memory,
            niceness=limits.niceness,
            max_log_bytes=self._settings.max_log_bytes,
            lab_id=lab_id,
            interrupt=interrupt,
        )

    def wrong_defaults(self, interrupt: threading.Event) -> str | None:
        """netlab's message if it rejects every topology on this host, otherwise None.

        Raises the exceptions of `run_netlab` except CalledProcessError.
        """
        return self._classifier.wrong_defaults(interrupt)

    def _create_good(self, scratch: Path, interrupt: threading.Event) -> None:
        what = [GOOD_NAME, *self._arguments.topology]
        self._create(scratch, what, scratch / "netlab.log", "", limits=self._check_limits, interrupt=interrupt)

    def up(
        self, workspace: Workspace, interrupt: threading.Event, last_check: Callable[[], None] | None = None
    ) -> list[DeviceInfoDto]:
        """Start a lab, from prepared files if there are any, and return its devices.

        The devices are read at low priority while netlab starts the nodes: netlab's snapshot has all their data by
        then. The devices of a prepared lab are read from its directory.

        Raises:
            TopologyRejected: netlab rejects the topology; the message is netlab's.
            The exceptions of `last_check`, which `run_netlab` calls, and the other ones of `run_netlab`.
        """
        prepared = workspace.snapshot.exists()
        start = workspace.log.stat().st_size if workspace.log.exists() else 0
        ended = threading.Event()
        with ThreadPoolExecutor(1) as reader:
            devices: Future[list[DeviceInfoDto] | None] = reader.submit(
                self._devices_once_written, workspace, start, ended, interrupt
            )
            try:
                what = ["--snapshot"] if prepared else self._topology_arguments(workspace)
                self._run_up(workspace, what, interrupt, last_check)
            except subprocess.CalledProcessError as error:
                if not prepared and not _printed(workspace, start, ACCEPTED):
                    self._classifier.raise_cause(error, interrupt)
                raise
            finally:
                ended.set()
        known = devices.result() or self.devices(workspace, interrupt)
        if interrupt.is_set():  # set after the last command ended
            raise InterruptedError("the start was stopped")
        return known

    def _run_up(
        self,
        workspace: Workspace,
        what: list[str],
        interrupt: threading.Event,
        last_check: Callable[[], None] | None,
    ) -> None:
        run_netlab(
            ["up", *what, *self._arguments.start],
            directory=workspace.directory,
            timeout=self._settings.up_timeout,
            command=self._settings.netlab,
            log=workspace.log,
            answer="y\n",  # the external provider asks whether the cabling is right
            kill_grace=self._settings.kill_grace,
            max_log_bytes=self._settings.max_log_bytes,
            lab_id=workspace.lab_id,
            interrupt=interrupt,
            preloaded=self._preloaded,
            last_check=last_check,
        )

    def _devices_once_written(
        self, workspace: Workspace, start: int, ended: threading.Event, interrupt: threading.Event
    ) -> list[DeviceInfoDto] | None:
        if workspace.devices.exists():
            return _DEVICES.validate_json(workspace.devices.read_bytes())
        while not ended.wait(SNAPSHOT_POLL):
            if workspace.snapshot.exists() and _printed(workspace, start, SNAPSHOT_WRITTEN):
                try:
                    return self.devices(workspace, interrupt, niceness=self._settings.create_niceness)
                except (subprocess.SubprocessError, OSError, ValueError) as error:
                    logger.info("lab %s: devices are read again after the start: %s", workspace.lab_id, failure(error))
                    return None
        return None

    def down(self, workspace: Workspace, *, force: bool) -> None:
        """Run `netlab down`. A failure is only logged: the caller checks what is left."""
        # Given twice, --force suppresses the question about an instance that is registered for another directory.
        arguments = ["down", "--cleanup", *(["--force", "--force"] if force else [])]
        try:
            run_netlab(
                arguments,
                directory=workspace.directory,
                timeout=self._settings.down_timeout,
                command=self._settings.netlab,
                log=workspace.log,
                kill_grace=self._settings.kill_grace,
                lab_id=workspace.lab_id,
            )
        except (subprocess.SubprocessError, OSError) as error:
            logger.warning("lab %s: netlab down failed: %s", workspace.lab_id, failure(error))

    def devices(self, workspace: Workspace, interrupt: threading.Event, *, niceness: int = 0) -> list[DeviceInfoDto]:
        """All nodes of a lab.

        Raises:
            subprocess.SubprocessError: netlab's output is invalid.
            The other exceptions of `run_netlab`.
        """
        with _invalid_output_as_failure():
            return read_devices(lambda arguments: self._inspect(workspace, arguments, interrupt, niceness))

    def runs(self, workspace: Workspace) -> bool:
        """Whether every node of a lab is running, according to netlab and its provider. False if that is unknown."""
        try:
            status = json.loads(self._ask(workspace, ["status", "--format", "json"]))
            # No provider reports the state of external nodes, unmanaged nodes and tools: for them, a registered
            # instance is enough.
            nodes = [node for node in status["nodes"].values() if _is_provided(node)]
            up = [str(node.get("status", "")).lower().startswith(("up", "running")) for node in nodes]
            return status["status"] == "started" and all(up)
        except (subprocess.SubprocessError, OSError, ValueError, LookupError, AttributeError) as error:
            logger.warning("lab %s: its state could not be determined: %s", workspace.lab_id, failure(error))
            return False

    def graph(self, workspace: Workspace, picture: Path, timeout: float, interrupt: threading.Event) -> None:
        """Write the graph of a lab as a DOT file, and as an SVG file if the host has Graphviz.

        Args:
            picture: path of the SVG file; the DOT file has the same stem.
            timeout: maximum duration in seconds.

        Raises the exceptions of `run_netlab`.
        """
        self._document(workspace, ["graph", _from(workspace, picture)], timeout, interrupt)

    def collect(
        self, workspace: Workspace, output: Path, nodes: Sequence[str], timeout: float, interrupt: threading.Event
    ) -> None:
        """Write the configurations of running nodes to a new directory, one file `NODE.cfg` each.

        Raises the exceptions of `run_netlab`; the files of the nodes that answered exist even then.
        """
        arguments = ["collect", "--output", _from(workspace, output), "--limit", ",".join(nodes)]
        self._document(workspace, arguments, timeout, interrupt)

    def _document(self, workspace: Workspace, arguments: list[str], timeout: float, interrupt: threading.Event) -> None:
        run_netlab(
            arguments,
            directory=workspace.directory,
            timeout=timeout,
            command=self._settings.netlab,
            kill_grace=self._settings.kill_grace,
            niceness=self._settings.create_niceness,
            lab_id=workspace.lab_id,
            interrupt=interrupt,
        )

    def docker_into(
        self, log: Path, arguments: Sequence[str], most: int, timeout: float, interrupt: threading.Event
    ) -> None:
        """Run `docker ARGUMENTS` and write at most `most` bytes of its output to `log`. Raises as `run_netlab`."""
        run_docker(
            arguments,
            command=self._settings.docker,
            timeout=timeout,
            interrupt=interrupt,
            log=log,
            max_log_bytes=most,
        )

    def docker(self, arguments: Sequence[str]) -> str:
        """The output of `docker ARGUMENTS`. Raises the exceptions of `run_netlab`."""
        return run_docker(arguments, command=self._settings.docker, timeout=self._settings.command_timeout)

    def start_docker(self, arguments: Sequence[str], *, lab_id: str, terminal: int | None = None) -> psutil.Popen:
        """Start `docker ARGUMENTS` without waiting for it. See `process.start_docker`."""
        return start_docker(arguments, command=self._settings.docker, lab_id=lab_id, terminal=terminal)

    def run(self, command: Sequence[str]) -> str:
        """The output of another command on the host. Raises the exceptions of `run_netlab`."""
        return run_docker(command[1:], command=command[0], timeout=self._settings.command_timeout)

    def require_docker(self) -> None:
        """Raise SubprocessError if the Docker command is another program, such as podman."""
        if not self._is_docker and not self.docker(["--version"]).startswith("Docker"):
            raise subprocess.SubprocessError(NOT_DOCKER)
        self._is_docker = True

    def _topology_arguments(self, workspace: Workspace) -> list[str]:
        """The topology, the operator's arguments for it, and a lab name that overrides any other."""
        return [workspace.topology_file.name, *self._arguments.topology, "-s", f"name={workspace.lab_name}"]

    def _inspect(
        self, workspace: Workspace, arguments: Sequence[str], interrupt: threading.Event, niceness: int
    ) -> str:
        return self._ask(workspace, ["inspect", *arguments], interrupt, niceness)

    def _ask(
        self, workspace: Workspace, arguments: list[str], interrupt: threading.Event | None = None, niceness: int = 0
    ) -> str:
        return run_netlab(
            arguments,
            directory=workspace.directory,
            timeout=self._settings.command_timeout,
            command=self._settings.netlab,
            kill_grace=self._settings.kill_grace,
            niceness=niceness,
            lab_id=workspace.lab_id,
            interrupt=interrupt,
        )


def _from(workspace: Workspace, path: Path) -> str:
    """A path relative to the lab's directory: netlab splits some arguments at spaces, which absolute paths may have."""
    return os.path.relpath(path, workspace.directory)


@contextmanager
def _invalid_output_as_failure() -> Iterator[None]:
    """Turn the ValueError of a parser into a SubprocessError: ValueError would mean a rejected topology."""
    try:
        yield
    except ValueError:
        raise subprocess.SubprocessError("netlab printed something other than the devices as JSON") from None


def _is_provided(node: dict[str, Any]) -> bool:
    return node.get("provider") not in {"external", "unmanaged"} and node.get("device") != "(tool)"


def _printed(workspace: Workspace, start: int, words: str) -> bool:
    with workspace.log.open("rb") as log:
        if log.seek(0, os.SEEK_END) == 0:
            return False
        with mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as printed:
            return printed.find(words.encode(), min(start, len(printed))) >= 0
