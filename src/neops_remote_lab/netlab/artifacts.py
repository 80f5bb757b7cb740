"""Collects logs, configurations and other artifacts of a lab in an archive, to explain the failure of a test.

The lab may be running, or may have failed to start. If a part cannot be collected, the archive has a note instead.
"""

import json
import os
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Final, NamedTuple

from pydantic import TypeAdapter

from neops_remote_lab.core.file_names import TOPOLOGY_FILE
from neops_remote_lab.core.reserved_names import is_ignored, is_written
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.netlab import leftovers
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.leftovers import Container
from neops_remote_lab.netlab.output import end_of_log
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import LOG_NAME, Workspace

PARALLEL_COMMANDS: Final = 4
"""Number of concurrent Docker commands; they mostly wait for their containers."""
NODE_LOG_LINES: Final = 20_000
"""Maximum number of lines of a node's log; only the last ones are collected."""
WITHOUT_CONFIGURATION: Final = frozenset({"linux", "none"})
"""netlab's device types that have no configuration."""
SHELLS: Final = frozenset({"bash", "sh"})
_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])


class Entry(NamedTuple):
    """One file of an archive."""

    name: str
    content: bytes
    mode: int = 0o644


class Archive(AbstractContextManager["Archive"]):
    """A gzipped tar archive in an unnamed temporary file, which disappears when it is closed.

    Leaving the `with` block closes an archive that is not finished.
    """

    def __init__(self, directory: Path, lab_id: str, taken: datetime, limit: int) -> None:
        """Create an empty archive.

        Args:
            directory: directory of the temporary file.
            taken: the time recorded in the archive.
            limit: maximum size before compression, in bytes.
        """
        self.notes: list[str] = []
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - its reader closes it
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")  # noqa: SIM115
        self._lab_id = lab_id
        self._taken = taken
        self._left = limit
        self._finished = False

    def add(self, entry: Entry) -> None:
        """Add a file, or a note if it exceeds the limit."""
        if len(entry.content) > self._left:
            self.notes.append(f"{entry.name} is left out: the archive is full (--max-artifact-bytes on the lab host)")
            return
        self._left -= len(entry.content)
        self._write(entry)

    def finish(self, *, topology: str | None = None, error: str | None = None) -> IO[bytes]:
        """Add the manifest and return the file, positioned at its beginning. The caller closes it."""
        about = {"lab_id": self._lab_id, "topology": topology, "taken": self._taken.isoformat(), "error": error}
        self._write(Entry("manifest.json", json.dumps({**about, "notes": self.notes}, indent=2).encode()))
        self._tar.close()
        self._file.seek(0)
        self._finished = True
        return self._file

    def _write(self, entry: Entry) -> None:
        header = tarfile.TarInfo(f"lab-{self._lab_id}/{entry.name}")
        header.size, header.mode, header.mtime = len(entry.content), entry.mode, int(self._taken.timestamp())
        self._tar.addfile(header, BytesIO(entry.content))

    def __exit__(self, *_: object) -> None:
        if not self._finished:
            self._file.close()


class ArtifactCollector:
    """Creates archives of labs. All methods block."""

    def __init__(self, netlab: NetlabCommands, settings: NetlabSettings) -> None:
        self._netlab = netlab
        self._settings = settings

    def of_lab(
        self, workspace: Workspace, devices: Sequence[DeviceInfoDto], now: datetime, interrupt: threading.Event
    ) -> IO[bytes]:
        """The archive of a running lab. Temporary files are in the lab's own directory.

        Args:
            now: the time recorded in the archive.
            interrupt: once set, aborts the collection with InterruptedError.

        Raises:
            OSError: the archive cannot be written.
        """
        base = workspace.base
        with (
            Archive(base, workspace.lab_id, now, self._settings.max_artifact_bytes) as archive,
            tempfile.TemporaryDirectory(dir=base, prefix="artifacts-") as scratch,
        ):
            collection = _Collection(
                self._netlab,
                self._settings,
                workspace,
                devices,
                Path(scratch),
                archive.notes,
                interrupt,
                deadline=time.monotonic() + self._settings.artifact_timeout,
            )
            for entry in collection.entries():
                archive.add(entry)
            return archive.finish(topology=workspace.topology)

    def of_failed_lab(self, lab_id: str, log: Path, error: str, now: datetime) -> IO[bytes]:
        """The archive of a lab that did not start: netlab's log and the error.

        Raises:
            OSError: the archive cannot be written, or the log does not exist.
        """
        with Archive(log.parent, lab_id, now, self._settings.max_artifact_bytes) as archive:
            archive.add(Entry(LOG_NAME, end_of_log(log, self._settings.max_artifact_log_bytes)))
            return archive.finish(error=error)


@dataclass
class _Collection:
    """Collects the parts of one archive."""

    netlab: NetlabCommands
    settings: NetlabSettings
    workspace: Workspace
    devices: Sequence[DeviceInfoDto]
    scratch: Path
    notes: list[str]
    interrupt: threading.Event
    deadline: float
    """End of the collection, in monotonic seconds."""

    def entries(self) -> Iterator[Entry]:
        """All parts. The slowest ones come last, because they are left out when the time is up."""
        yield from self._noted("the topology", self._topology())
        yield from self._noted(LOG_NAME, self._log())
        yield from self._inventory()
        yield from self._noted("the nodes' logs", self._node_logs())
        yield from self._noted("the graph", self._graph())
        yield from self._noted("the configurations", self._configurations())

    def _noted(self, what: str, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The entries of a part. If the part fails, the entries so far, and a note."""
        while True:
            if self.interrupt.is_set():
                raise InterruptedError("the collection was stopped")
            try:
                entry = next(entries, None)
            except InterruptedError:
                raise
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                self._note(what, error)
                return
            if entry is None:
                return
            yield entry

    def _note(self, what: str, error: Exception) -> None:
        self.notes.append(f"{what}: {failure(error)}")

    def _seconds(self) -> float:
        """Seconds that the next command may take."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            limit = f"{self.settings.artifact_timeout:g} s, the limit that --artifact-timeout sets on the lab host"
            raise TimeoutError(f"the other parts have taken {limit}")
        return left

    def _topology(self) -> Iterator[Entry]:
        """The uploaded files, without those that netlab wrote."""
        directory = self.workspace.directory
        for parent, directories, files in os.walk(directory):
            below = PurePosixPath(Path(parent).relative_to(directory).as_posix())
            directories[:] = sorted(name for name in directories if not _is_netlabs(below / name, is_directory=True))
            for name in sorted(files):
                path, relative = Path(parent, name), below / name
                if _is_netlabs(relative, is_directory=False):
                    continue
                shown = self.workspace.topology if str(relative) == TOPOLOGY_FILE else str(relative)
                if (found := self._read(path, f"topology/{shown}")) is not None:
                    yield found

    def _log(self) -> Iterator[Entry]:
        yield Entry(LOG_NAME, end_of_log(self.workspace.log, self.settings.max_artifact_log_bytes))

    def _inventory(self) -> Iterator[Entry]:
        """The devices as in the HTTP API, and as an Ansible inventory."""
        hosts = {device.name: device.raw for device in self.devices}
        yield Entry("devices.json", _DEVICES.dump_json(list(self.devices), indent=2))
        yield Entry("inventory.json", json.dumps({"all": {"hosts": hosts}}, indent=2).encode())

    def _node_logs(self) -> Iterator[Entry]:
        options = ["--timestamps", f"--tail={NODE_LOG_LINES}"]
        commands = {name: ["logs", *options, container.identifier] for name, container in self._nodes.items()}
        for name, printed in self._printed("logs", commands):
            yield Entry(f"logs/{name}.log", printed)

    def _graph(self) -> Iterator[Entry]:
        """The source of the graph, and the picture if the host has Graphviz."""
        source, picture = self.scratch / "graph.dot", self.scratch / "graph.svg"
        self.netlab.graph(self.workspace, picture, self._seconds(), self.interrupt)
        for path in (source, picture):
            if path.exists() and (found := self._read(path, path.name)) is not None:
                yield found

    def _configurations(self) -> Iterator[Entry]:
        """The configurations: of containers by netlab's show command, of all other devices by `netlab collect`.

        `netlab collect` takes ten times as long, needs Ansible collections, and makes some devices save their settings.
        """
        commands = {
            device.name: ["exec", device.raw["ansible_host"], *words]
            for device in self.devices
            if (words := _show_command(device)) and self._is_ours(device)
        }
        shown = set()
        for name, printed in self._printed("configs", commands):
            shown.add(name)
            yield Entry(f"configs/{name}.cfg", printed)
        if rest := [device.name for device in self.devices if device.name not in commands and _has_one(device)]:
            yield from self._collect(rest)

    def _collect(self, nodes: Sequence[str]) -> Iterator[Entry]:
        output = self.scratch / "collected"
        try:
            self.netlab.collect(self.workspace, output, nodes, self._seconds(), self.interrupt)
        except InterruptedError:
            raise
        except (subprocess.SubprocessError, OSError) as error:  # the nodes that answered have files
            self._note("netlab collect", error)
        for path in sorted(output.glob("*")):
            if (found := self._read(path, f"configs/{path.name}")) is not None:
                yield found

    @cached_property
    def _nodes(self) -> dict[str, Container]:
        """The lab's containers by node name."""
        if not leftovers.docker_is_installed(self.settings.docker):
            return {}
        containers = leftovers.all_containers(self.netlab.docker)
        ours = (found for found in containers if found.is_below(self.workspace.base))
        return {found.node: found for found in sorted(ours, key=lambda each: each.node)}

    def _is_ours(self, device: DeviceInfoDto) -> bool:
        """Whether a device is a container of this lab: a topology may name any host."""
        return device.raw.get("ansible_host") in {container.name for container in self._nodes.values()}

    def _printed(self, kind: str, commands: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, bytes]]:
        """Run a Docker command for each node. Yields node and output of those that succeed; notes the others."""
        scratch = self.scratch / kind
        scratch.mkdir()

        def run(name: str) -> Path | None:
            log = scratch / name
            limit = self.settings.max_artifact_log_bytes
            try:
                self.netlab.docker_into(log, commands[name], limit, self._seconds(), self.interrupt)
            except InterruptedError:
                raise
            except (subprocess.SubprocessError, OSError) as error:
                self._note(f"{kind}/{name}", error)
                return None
            return log

        with ThreadPoolExecutor(PARALLEL_COMMANDS) as pool:
            for name, log in zip(commands, pool.map(run, commands), strict=True):
                if log is not None:
                    yield name, log.read_bytes()  # here, so that one at a time is in memory

    def _read(self, path: Path, name: str) -> Entry | None:
        """A file as an entry; a note and None if it cannot be read."""
        try:
            return _read_file(path, name, self.settings.max_artifact_bytes)
        except (OSError, ValueError) as error:
            self._note(name, error)
            return None


def _read_file(path: Path, name: str, most: int) -> Entry:
    """A regular file as an entry. Links are not followed, because the code of a topology may have created them."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"more than {most} bytes (--max-artifact-bytes on the lab host)")
        return Entry(name, file.read(most), 0o755 if status.st_mode & stat.S_IXUSR else 0o644)


def _is_netlabs(name: PurePosixPath, *, is_directory: bool) -> bool:
    return is_ignored(str(name)) or is_written(name, is_directory=is_directory)


def _show_command(device: DeviceInfoDto) -> list[str] | None:
    """The command that shows a container's configuration; None if netlab knows none, or if it needs a shell."""
    words = device.raw.get("netlab_show_command")
    if device.raw.get("ansible_connection") != "docker" or not isinstance(words, list) or not words:
        return None
    if words[0] in SHELLS or not any("$@" in str(word) for word in words):
        return None
    return [str(word).replace("$@", "running-config") for word in words]


def _has_one(device: DeviceInfoDto) -> bool:
    """Whether a device may have a configuration."""
    return not device.raw.get("unmanaged") and device.raw.get("ansible_network_os") not in WITHOUT_CONFIGURATION
