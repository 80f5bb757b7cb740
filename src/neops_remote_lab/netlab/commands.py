"""The netlab and Docker commands that a lab needs, with this host's limits."""

import json
import logging
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import TypeAdapter

from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab import up_arguments
from neops_remote_lab.netlab.failures import GOOD_NAME, Judge, failure
from neops_remote_lab.netlab.inventory import read_devices, read_lab
from neops_remote_lab.netlab.leftovers import NOT_DOCKER
from neops_remote_lab.netlab.process import PreloadedNetlab, run_docker, run_netlab
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace

logger = logging.getLogger(__name__)

ACCEPTED: Final = "Checking virtualization provider installation"
"""netlab prints this once it has accepted the topology; nothing is started or registered before."""
SNAPSHOT_WRITTEN: Final = "into netlab.snapshot.pickle"
"""netlab prints this once its record of the lab is whole: the devices can be read from then on."""
_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])
STATUS_FILE_SETTING: Final = "lab_status_file"
DEFAULT_STATUS_FILE: Final = "~/.netlab/status.yaml"
"""netlab's own default, which is no setting that it could be asked for."""
LOOK_EVERY: Final = 0.02
"""Seconds between two looks whether netlab has written it."""


class Prepared(NamedTuple):
    """What `netlab create` made of a topology."""

    devices: list[DeviceInfoDto]
    links: int


class NetlabCommands:
    """Runs netlab in labs' work directories. All methods block."""

    def __init__(self, settings: NetlabSettings, preloaded: PreloadedNetlab | None = None) -> None:
        """With a `preloaded`, labs are started by the netlab that it has loaded."""
        self._settings = settings
        self._preloaded = preloaded
        self._status_file: Path | None = None
        self._is_docker = False
        self._arguments = up_arguments.split(settings.netlab_up_args)
        self._judge = Judge(self._create_good)
        self._ended = threading.Event()

    def stop_asking(self) -> None:
        """End a question about the host that netlab answers, for good. Never blocks."""
        self._ended.set()

    def create(self, workspace: Workspace, interrupt: threading.Event) -> Prepared:
        """Make a lab's configuration files and start nothing, at low priority and in bounded memory and time.

        Raises:
            TopologyRejected: the message is netlab's own.
            TimeoutError, MemoryError: it is over the host's limits.
            What `run_netlab` raises otherwise.
        """
        try:
            self._create(
                workspace.directory, self._topology_arguments(workspace), workspace.log, workspace.lab_id, interrupt
            )
        except subprocess.CalledProcessError as error:
            self._judge.rejected(error, interrupt, memory=self._settings.max_create_bytes)
        except subprocess.TimeoutExpired as error:
            limit = f"{error.timeout:g} s, the limit that --create-timeout sets on the lab host"
            raise TimeoutError(f"netlab took longer than {limit}, to check this topology") from None
        niceness = self._settings.create_niceness
        with _nonsense_is_no_rejection():
            devices, links = read_lab(lambda arguments: self._inspect(workspace, arguments, interrupt, niceness))
        workspace.devices.write_bytes(_DEVICES.dump_json(devices))
        return Prepared(devices, links)

    def _create(self, directory: Path, what: list[str], log: Path, lab_id: str, interrupt: threading.Event) -> None:
        run_netlab(
            ["create", *what],
            directory=directory,
            timeout=self._settings.create_timeout,
            command=self._settings.netlab,
            log=log,
            kill_grace=self._settings.kill_grace,
            memory=self._settings.max_create_bytes,
            niceness=self._settings.create_niceness,
            max_log_bytes=self._settings.max_log_bytes,
            lab_id=lab_id,
            interrupt=interrupt,
        )

    def wrong_defaults(self, interrupt: threading.Event) -> str | None:
        """What netlab says on a host on which it rejects every topology; None on any other.

        Raises what `run_netlab` raises where netlab says nothing.
        """
        return self._judge.wrong_defaults(interrupt)

    def _create_good(self, scratch: Path, interrupt: threading.Event) -> None:
        self._create(scratch, [GOOD_NAME, *self._arguments.topology], scratch / "netlab.log", "", interrupt)

    def up(self, workspace: Workspace, interrupt: threading.Event) -> list[DeviceInfoDto]:
        """Start a lab, from its prepared files where it has them, and tell its devices.

        The devices are read while netlab starts the nodes, yielding to it: all that is to be known of them is known by
        then. Those of a prepared lab are known already.

        Raises:
            TopologyRejected: the message is netlab's own.
            What `run_netlab` raises otherwise.
        """
        prepared = workspace.snapshot.exists()
        start = workspace.log.stat().st_size if workspace.log.exists() else 0
        ended = threading.Event()
        with ThreadPoolExecutor(1) as reader:
            devices: Future[list[DeviceInfoDto] | None] = reader.submit(
                self._devices_once_written, workspace, start, ended, interrupt
            )
            try:
                self._run_up(workspace, ["--snapshot"] if prepared else self._topology_arguments(workspace), interrupt)
            except subprocess.CalledProcessError as error:
                if not prepared and not _printed(workspace, start, ACCEPTED):
                    self._judge.rejected(error, interrupt)
                raise
            finally:
                ended.set()
        known = devices.result() or self.devices(workspace, interrupt)
        if interrupt.is_set():  # a moment too late for any command
            raise InterruptedError("the start was stopped")
        return known

    def _run_up(self, workspace: Workspace, what: list[str], interrupt: threading.Event) -> None:
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
        )

    def _devices_once_written(
        self, workspace: Workspace, start: int, ended: threading.Event, interrupt: threading.Event
    ) -> list[DeviceInfoDto] | None:
        if workspace.devices.exists():
            return _DEVICES.validate_json(workspace.devices.read_bytes())
        while not ended.wait(LOOK_EVERY):
            if workspace.snapshot.exists() and _printed(workspace, start, SNAPSHOT_WRITTEN):
                try:
                    return self.devices(workspace, interrupt, niceness=self._settings.create_niceness)
                except (subprocess.SubprocessError, OSError, ValueError) as error:
                    logger.info("lab %s: its devices are read again at the end: %s", workspace.lab_id, failure(error))
                    return None
        return None

    def down(self, workspace: Workspace, *, force: bool) -> None:
        """Take a lab down. That it is gone is not believed: the caller looks."""
        # Twice: netlab then asks nothing where its instance is registered for another directory.
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
        """All nodes of a lab. Raises what `run_netlab` raises, and SubprocessError where netlab prints nonsense."""
        with _nonsense_is_no_rejection():
            return read_devices(lambda arguments: self._inspect(workspace, arguments, interrupt, niceness))

    def runs(self, workspace: Workspace) -> bool:
        """Whether netlab and the provider say that all of a lab runs."""
        try:
            status = json.loads(self._ask(workspace, ["status", "--format", "json"]))
            # No provider speaks for external nodes, unmanaged nodes and tools: that the instance is registered is all
            # there is to know of them.
            nodes = [node for node in status["nodes"].values() if _is_provided(node)]
            up = [str(node.get("status", "")).lower().startswith(("up", "running")) for node in nodes]
            return status["status"] == "started" and all(up)
        except (subprocess.SubprocessError, OSError, ValueError, LookupError, AttributeError) as error:
            logger.warning("lab %s: it cannot be told whether it runs: %s", workspace.lab_id, failure(error))
            return False

    def graph(self, workspace: Workspace, picture: Path, timeout: float, interrupt: threading.Event) -> None:
        """Draw a lab as an SVG file, and write the source of that beside it; without Graphviz, the source alone."""
        self._document(workspace, ["graph", _from(workspace, picture)], timeout, interrupt)

    def collect(
        self, workspace: Workspace, output: Path, nodes: Sequence[str], timeout: float, interrupt: threading.Event
    ) -> None:
        """Write the configurations of some nodes that run to a new directory, one file `NODE.cfg` each."""
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
        """Have `docker ARGUMENTS` print to a file, at most so many bytes. Raises what `run_netlab` raises."""
        run_docker(
            arguments,
            command=self._settings.docker,
            timeout=timeout,
            interrupt=interrupt,
            log=log,
            max_log_bytes=most,
        )

    def docker(self, arguments: Sequence[str]) -> str:
        """What `docker ARGUMENTS` prints. Raises what `run_netlab` raises."""
        return run_docker(arguments, command=self._settings.docker, timeout=self._settings.command_timeout)

    def run(self, command: Sequence[str]) -> str:
        """What another command of the host prints. Raises what `run_netlab` raises."""
        return run_docker(command[1:], command=command[0], timeout=self._settings.command_timeout)

    def require_docker(self) -> None:
        """Raises SubprocessError where the Docker command is that of another program."""
        if not self._is_docker and not self.docker(["--version"]).startswith("Docker"):
            raise subprocess.SubprocessError(NOT_DOCKER)
        self._is_docker = True

    def status_file(self, interrupt: threading.Event | None = None) -> Path:
        """Where netlab keeps its list of instances on this host; asked until it is known.

        Args:
            interrupt: ends the question early, once it is set; without one, `stop_asking` does.

        Raises:
            subprocess.SubprocessError: netlab cannot say, because of a mistake in the host's defaults, for example.
            What `run_netlab` raises otherwise.
        """
        if self._status_file is None:
            self._status_file = Path(self._ask_status_file(interrupt or self._ended)).expanduser()
        return self._status_file

    def _ask_status_file(self, interrupt: threading.Event) -> str:
        try:
            printed = run_netlab(
                ["defaults", "--format", "yaml", STATUS_FILE_SETTING],
                directory=Path("/"),
                timeout=self._settings.command_timeout,
                command=self._settings.netlab,
                kill_grace=self._settings.kill_grace,
                interrupt=interrupt,
            )
        except subprocess.CalledProcessError as error:
            if f"{STATUS_FILE_SETTING} not found" in str(error.stderr):
                return DEFAULT_STATUS_FILE
            self._judge.require_good_defaults(interrupt)
            raise
        try:
            return str(yaml.safe_load(printed)[STATUS_FILE_SETTING])
        except (yaml.YAMLError, LookupError, TypeError):
            raise subprocess.SubprocessError("netlab does not say where it keeps its list of instances") from None

    def _topology_arguments(self, workspace: Workspace) -> list[str]:
        """The topology, what the operator adds to it, and a lab name that wins over any that those may have."""
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
    """A path as netlab can be told it: it splits some arguments at spaces, which directories of the host may have."""
    return os.path.relpath(path, workspace.directory)


@contextmanager
def _nonsense_is_no_rejection() -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise subprocess.SubprocessError("netlab printed something else than the devices as JSON") from None


def _is_provided(node: dict[str, Any]) -> bool:
    return node.get("provider") not in {"external", "unmanaged"} and node.get("device") != "(tool)"


def _printed(workspace: Workspace, start: int, words: str) -> bool:
    with workspace.log.open("rb") as log:
        if log.seek(0, os.SEEK_END) == 0:
            return False
        with mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as printed:
            return printed.find(words.encode(), min(start, len(printed))) >= 0
