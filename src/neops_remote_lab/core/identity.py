"""What makes two labs the same: the contents of their files, never the topology's name."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

EXECUTABLE_MARK: Final = "\0executable"
"""Follows the digest of an executable file in the identity."""


class Identity(NamedTuple):
    """What makes two labs the same."""

    topology: str
    """SHA-256 of the topology file's bytes."""
    extra: str | None = None
    """SHA-256 over names and digests of the extra files; None without any."""


def identity_of(topology_sha256: str, extra: Mapping[str, str]) -> Identity:
    """The identity of a topology and its extra files, given by name and SHA-256."""
    if not extra:
        return Identity(topology_sha256)
    digest = hashlib.sha256()
    for name, sha256 in sorted(extra.items()):
        digest.update(f"{name}\0{sha256}\n".encode())
    return Identity(topology_sha256, digest.hexdigest())


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
