"""Allowed names of a topology file and its extra files."""

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
"""The topology's file name on the host. It is fixed, so that no uploaded name reaches a command line."""

_DRIVE = re.compile(r"^[A-Za-z]:")


def topology_name(uploaded: str) -> str:
    """The display name of a topology: `x.yaml` becomes `x.yml`, as in 1.x.

    Raises:
        ValueError: the name is not a plain file name that ends in .yml or .yaml.
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
        ValueError: the name is empty or not printable, leads out of the directory, or is one that a tool on the host
            would act on.
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
        ValueError: as `relative_name`; or netlab or containerlab writes or deletes files of that name.
    """
    name = relative_name(uploaded)
    if is_the_topology(name):
        raise ValueError(f"the file name {uploaded!r} is reserved for the topology: rename the file")
    if (reason := objection_beside_topology(name)) is not None:
        raise ValueError(f"the file name {uploaded!r} {reason}: rename the file")
    return name


def is_the_topology(name: PurePosixPath) -> bool:
    """Whether netlab would read an extra file as the topology: it prefers `NAME.26.10.yml` to `NAME.yml`."""
    stem = TOPOLOGY_FILE.removesuffix("yml")
    return name.parts[0].casefold().startswith(stem)


def collision(names: Iterable[PurePosixPath], name: PurePosixPath) -> bool:
    """Whether a name is already used, as a file or as a directory. Case is ignored, as some file systems do."""
    key = str(name).casefold()
    return any(
        key == other or key.startswith(f"{other}/") or other.startswith(f"{key}/")
        for other in (str(known).casefold() for known in names)
    )
