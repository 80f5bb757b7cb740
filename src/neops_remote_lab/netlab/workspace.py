"""A lab's work directory: what was uploaded, the directory netlab runs in, and the log of what it printed."""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neops_remote_lab.core.file_names import TOPOLOGY_FILE, topology_name
from neops_remote_lab.core.identity import EXECUTABLE_MARK, Identity, identity_of, sha256_of
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.netlab import ownership

LOG_NAME: Final = "netlab.log"
DIRECTORY_NAME: Final = "lab"
"""The directory in which netlab runs. Neither its name nor that of any file of ours comes from an upload."""
LAB_NAME_PREFIX: Final = "rl"
LAB_NAME_LENGTH: Final = 10
"""netlab makes the names of bridges from the first 10 characters of a lab's name: those must tell labs apart."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The files of one lab: `ROOT/LAB_ID/netlab.log`, and `ROOT/LAB_ID/lab/` in which netlab runs."""

    lab_id: str
    base: Path
    topology: str
    """The name that the user gave the topology file. To be shown only: it is no path and no argument."""
    identity: Identity

    @property
    def lab_name(self) -> str:
        """The lab's name for netlab and its provider, and so a part of the names of containers and bridges.

        A provider replaces a running lab of the same name, whoever started it: this one is made from the lab's id, so
        that no other lab has it.
        """
        return f"{LAB_NAME_PREFIX}{self.lab_id}"[:LAB_NAME_LENGTH]

    @property
    def directory(self) -> Path:
        """Where netlab runs."""
        return self.base / DIRECTORY_NAME

    @property
    def topology_file(self) -> Path:
        """The topology, for netlab."""
        return self.directory / TOPOLOGY_FILE

    @property
    def log(self) -> Path:
        """What netlab printed."""
        return self.base / LOG_NAME

    @property
    def devices(self) -> Path:
        """The devices of a prepared lab, as JSON."""
        return self.base / "devices.json"

    @property
    def snapshot(self) -> Path:
        """netlab's own record of the lab; it exists once the configuration files are made."""
        return self.directory / "netlab.snapshot.pickle"


def new_lab_id() -> str:
    """A name for a lab that no other has."""
    return secrets.token_hex(8)


def make_executable(path: Path) -> None:
    """Allow everybody who may read a file to execute it."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)


def create_lab_directory(base: Path, host: str) -> None:
    """Make a lab's directory, with the record that it is ours; one that is there already is fine.

    Raises:
        OSError: the work directory is not ours, or it cannot be written to.
    """
    if not base.exists():
        ownership.new_directory(base.parent, base.name, host)


def copy_topology(files: TopologyFiles, root: Path, host: str) -> Workspace:
    """A directory below `root` with a copy of a local topology and its extra files.

    Raises:
        ValueError: a file's name cannot be used.
        OSError: a file cannot be read or copied; FileNotFoundError where it is missing.
    """
    name, extra = topology_name(files.name), files.found()
    lab_id = new_lab_id()
    base = root / lab_id
    directory = base / DIRECTORY_NAME
    create_lab_directory(base, host)
    try:
        directory.mkdir()
        topology = _copy_file(files.path, directory / TOPOLOGY_FILE)
        digests = {}
        for file in extra:
            digests[file.name] = _copy_file(file.path, directory / file.name)
            if file.executable:
                make_executable(directory / file.name)
                digests[file.name] += EXECUTABLE_MARK
    except BaseException:
        remove_workspace(base)
        raise
    return Workspace(lab_id, base, name, identity_of(topology, digests))


def _copy_file(source: Path, target: Path) -> str:
    """Copy a file's bytes to a new file; their SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return sha256_of(target)


def abandoned_workspace(base: Path) -> Workspace:
    """The lab whose files lie in a work directory that an earlier server has left."""
    return Workspace(base.name, base, TOPOLOGY_FILE, Identity(""))


def remove_workspace(base: Path) -> None:
    """Remove a lab's directory with all that is in it, if it is provably ours; one that is gone already is fine."""
    ownership.remove(base)
