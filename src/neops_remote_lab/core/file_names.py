"""Which names a topology and the files beside it may have."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from neops_remote_lab.core.reserved_names import objection_anywhere, objection_beside_topology
from neops_remote_lab.core.text import refuse_unprintable

SUFFIXES: Final = (".yml", ".yaml")
NAME_LENGTH: Final = 255
NAME_DEPTH: Final = 16

TOPOLOGY_FILE: Final = "remote-lab-topology.yml"
"""The topology's name beside its extra files, whatever its user calls it: no uploaded name reaches a command line."""

_DRIVE = re.compile(r"^[A-Za-z]:")


def topology_name(uploaded: str) -> str:
    """The name under which a topology is shown: `x.yaml` becomes `x.yml`, as 1.x stored it.

    Raises:
        ValueError: the name is no plain file name that ends in .yml or .yaml.
    """
    name = relative_name(uploaded)
    if len(name.parts) > 1:
        raise ValueError(f"the topology's file name {uploaded!r} must not name a directory")
    if name.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the topology's file name {uploaded!r} must end in .yml or .yaml")
    return f"{name.stem}.yml"


def relative_name(uploaded: str) -> PurePosixPath:
    """The path of an uploaded file below the directory of the topology.

    Raises:
        ValueError: the name is empty or not printable, leaves the directory, or is one that a tool would obey.
    """
    what = f"the file name {uploaded[:NAME_LENGTH]!r}"
    if not uploaded:
        raise ValueError(f"{what} is empty")
    refuse_unprintable(what, uploaded)
    if "\\" in uploaded or _DRIVE.match(uploaded) or uploaded.startswith("/"):
        raise ValueError(f"{what} must be relative, with / between directories")
    parts = uploaded.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{what} must not leave the directory of the topology")
    if len(parts) > NAME_DEPTH or any(len(part.encode()) > NAME_LENGTH for part in parts):
        raise ValueError(f"{what} is too long")
    name = PurePosixPath(*parts)
    if (reason := objection_anywhere(name)) is not None:
        raise ValueError(f"{what} {reason}")
    return name


def extra_file_name(uploaded: str) -> PurePosixPath:
    """The path of an extra file below the directory of the topology.

    Raises:
        ValueError: as `relative_name`; or netlab or containerlab writes or deletes what is called so.
    """
    name = relative_name(uploaded)
    if is_the_topology(name):
        raise ValueError(f"the file name {uploaded!r} is that of the topology on the host: name it otherwise")
    if (reason := objection_beside_topology(name)) is not None:
        raise ValueError(f"the file name {uploaded!r} {reason}: name the file otherwise")
    return name


def is_the_topology(name: PurePosixPath) -> bool:
    """Whether netlab would take an extra file for the topology: it prefers `NAME.26.10.yml` to `NAME.yml`."""
    stem = TOPOLOGY_FILE.removesuffix("yml")
    return name.parts[0].casefold().startswith(stem)


def collision(names: Iterable[PurePosixPath], name: PurePosixPath) -> bool:
    """Whether a name is taken, as a file or as a directory, on a file system that may ignore case."""
    key = str(name).casefold()
    return any(
        key == other or key.startswith(f"{other}/") or other.startswith(f"{key}/")
        for other in (str(known).casefold() for known in names)
    )
