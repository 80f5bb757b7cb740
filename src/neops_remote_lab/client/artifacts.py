"""Unpacks the archives in which a server sends what would explain a failure."""

import io
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Final

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 1 << 30
"""Most that is unpacked of one archive: who answers may be no lab server."""


def unpack_artifacts(archive: bytes, directory: Path) -> Path:
    """Unpack an archive of artifacts below a directory, which is made where it is missing.

    Nothing is written outside of it, whatever the archive says, and nothing is left of an archive that is refused.

    Returns:
        The directory of the lab, `lab-ID`, which replaces one of the same name.

    Raises:
        ValueError: it is no such archive, or it is too large.
        OSError: it cannot be written.
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
        file.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4; what it is for is checked below
        for number, member in enumerate(file):
            left -= member.size
            if left < 0 or number >= MAX_FILES:
                raise ValueError(f"the artifacts are more than {MAX_BYTES} bytes or {MAX_FILES} files")
            path = PurePosixPath(member.name)
            if not member.isreg() or path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
                raise ValueError(f"the artifacts have {member.name!r}, which is no file of a lab")
            tops.add(path.parts[0])
            file.extract(member, directory)
    if len(tops) != 1:
        raise ValueError("the artifacts are not those of one lab")
    return tops.pop()
