"""Topology identity: two labs are the same if their files have the same content; the topology's name does not count."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

EXECUTABLE_MARK: Final = "\0executable"
"""Appended to the digest of an executable file."""


class Identity(NamedTuple):
    """Digests of a topology and its extra files. Labs with equal identities are interchangeable."""

    topology: str
    """SHA-256 of the topology file's bytes."""
    extra: str | None = None
    """SHA-256 of the names and digests of the extra files; None if there are none."""


def identity_of(topology_sha256: str, extra: Mapping[str, str]) -> Identity:
    """The identity of a topology, from its SHA-256 and a mapping of extra file names to SHA-256 digests."""
    if not extra:
        return Identity(topology_sha256)
    digest = hashlib.sha256()
    for name, sha256 in sorted(extra.items()):
        digest.update(f"{name}\0{sha256}\n".encode())
    return Identity(topology_sha256, digest.hexdigest())


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
