"""The directory of one lab: its uploaded files, the directory in which netlab runs, and netlab's log."""

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
"""The directory in which netlab runs. No name outside of it comes from an upload."""
LAB_NAME_PREFIX: Final = "rl"
LAB_NAME_LENGTH: Final = 10
"""netlab builds bridge names from the first 10 characters of a lab's name, so these must be unique."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """The files of one lab: `ROOT/LAB_ID/netlab.log`, and `ROOT/LAB_ID/lab/` in which netlab runs."""

    lab_id: str
    base: Path
    topology: str
    """The user's name of the topology file, for display only; never use it as a path or an argument."""
    identity: Identity

    @property
    def lab_name(self) -> str:
        """The lab's name for netlab and its provider, part of the names of containers and bridges.

        It is derived from the lab's id to be unique, because a provider replaces any running lab of the same name.
        """
        return f"{LAB_NAME_PREFIX}{self.lab_id}"[:LAB_NAME_LENGTH]

    @property
    def directory(self) -> Path:
        """The directory in which netlab runs."""
        return self.base / DIRECTORY_NAME

    @property
    def topology_file(self) -> Path:
        """The topology file that netlab reads."""
        return self.directory / TOPOLOGY_FILE

    @property
    def log(self) -> Path:
        """netlab's output."""
        return self.base / LOG_NAME

    @property
    def devices(self) -> Path:
        """The devices of a prepared lab, as JSON."""
        return self.base / "devices.json"

    @property
    def snapshot(self) -> Path:
        """netlab's record of the lab, which exists once the configuration files are generated."""
        return self.directory / "netlab.snapshot.pickle"


def new_lab_id() -> str:
    """A new unique id: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def make_executable(path: Path) -> None:
    """Allow every user who may read a file to execute it."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)


def create_lab_directory(base: Path, host: str) -> None:
    """Create a lab's directory with the record that it is ours, unless it exists.

    Raises:
        OSError: the work directory is not ours or cannot be written.
    """
    if not base.exists():
        ownership.new_directory(base.parent, base.name, host)


def copy_topology(files: TopologyFiles, root: Path, host: str) -> Workspace:
    """Create a workspace below `root` with copies of a local topology and its extra files.

    Raises:
        ValueError: the name of a file is not allowed.
        OSError: a file is missing (FileNotFoundError), or cannot be read or copied.
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
    """Copy a file's content and return its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return sha256_of(target)


def abandoned_workspace(base: Path) -> Workspace:
    """The workspace of a lab that an earlier server left behind; only its paths and its id are known."""
    return Workspace(base.name, base, TOPOLOGY_FILE, Identity(""))


def remove_workspace(base: Path) -> None:
    """Remove a lab's directory and its content if it exists and is provably ours."""
    ownership.remove(base)
