"""Unpacks artifact archives of a server."""

import io
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 1 << 30
"""Limits of what is unpacked from one archive, which may not come from a lab server."""


def unpack_artifacts(archive: bytes, directory: Path) -> Path:
    """Unpack an archive of artifacts below a directory, which is created if it does not exist.

    Nothing is written outside the directory, and nothing is left of an archive that is refused.

    Returns:
        The directory of the lab, `lab-ID`. An existing one is replaced.

    Raises:
        ValueError: this is not such an archive, or it is too large.
        OSError: the files cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".unpacking-") as scratch:
        try:
            name = _extract(archive, Path(scratch))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"the artifacts cannot be unpacked: {error}") from None
        lab = directory / name
        shutil.rmtree(lab, ignore_errors=True)
        return Path(scratch, name).rename(lab)


def _extract(archive: bytes, directory: Path) -> str:
    """The name of the one directory in the archive."""
    tops, left = set(), MAX_BYTES
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as file:
        file.extraction_filter = getattr(
            tarfile, "data_filter", None
        )  # since Python 3.11.4; the checks below suffice without it
        for number, member in enumerate(file):
            left -= member.size
            if left < 0 or number >= MAX_FILES:
                raise ValueError(f"the artifacts are more than {MAX_BYTES} bytes or {MAX_FILES} files")
            path = PurePosixPath(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
                raise ValueError(f"the artifacts have {member.name!r}, which is not a file of a lab")
            tops.add(path.parts[0])
            file.extract(member, directory)
    if len(tops) != 1:
        raise ValueError("the artifacts are not those of one lab")
    return tops.pop()
