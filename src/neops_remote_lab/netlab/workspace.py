"""A lab's work directory: what was uploaded, the directory netlab runs in, and the log of what it printed."""

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neops_remote_lab.core.file_names import TOPOLOGY_FILE, topology_name
from neops_remote_lab.core.identity import Identity, identity_of
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


def copy_topology(topology: Path, root: Path, host: str) -> Workspace:
    """A directory below `root` with a copy of a local topology file.

    Raises:
        ValueError: the file's name does not end in .yml.
        OSError: it cannot be read or copied.
    """
    if topology.suffix != ".yml":
        raise ValueError(f"{topology} must end in .yml")
    content = topology.read_bytes()
    lab_id = new_lab_id()
    workspace = Workspace(
        lab_id, root / lab_id, topology_name(topology.name), identity_of(hashlib.sha256(content).hexdigest(), {})
    )
    create_lab_directory(workspace.base, host)
    workspace.directory.mkdir()
    workspace.topology_file.write_bytes(content)
    return workspace


def abandoned_workspace(base: Path) -> Workspace:
    """The lab whose files lie in a work directory that an earlier server has left."""
    return Workspace(base.name, base, TOPOLOGY_FILE, Identity(""))


def remove_workspace(base: Path) -> None:
    """Remove a lab's directory with all that is in it, if it is provably ours; one that is gone already is fine."""
    ownership.remove(base)
