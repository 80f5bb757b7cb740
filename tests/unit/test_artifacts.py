"""Unpacking of artifact archives that a client has received."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from neops_remote_lab.client import artifacts
from neops_remote_lab.client.artifacts import unpack_artifacts


def packed(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size, header.type, header.linkname = len(content), kind, link
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def paths_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_a_lab_has_a_directory_which_replaces_its_older_one(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output"
    first = unpack_artifacts(packed(("lab-1/configs/r1.cfg", b"old"), ("lab-1/netlab.log", b"log")), output)
    assert first == output / "lab-1"
    unpack_artifacts(packed(("lab-2/netlab.log", b"log")), output)
    unpack_artifacts(packed(("lab-1/configs/r1.cfg", b"new")), output)
    assert paths_below(output) == ["lab-1", "lab-1/configs", "lab-1/configs/r1.cfg", "lab-2", "lab-2/netlab.log"]
    assert (output / "lab-1/configs/r1.cfg").read_bytes() == b"new"


INVALID_ARCHIVES = {
    "above the directory": packed(("../lab-1/x", b"x")),
    "above the lab's directory": packed(("lab-1/../../x", b"x")),
    "an absolute path": packed(("/lab-1/x", b"x")),
    "a file in place of the directory": packed(("lab-1", b"x")),
    "a symbolic link": packed(("lab-1/x", b""), kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": packed(("lab-1/x", b""), kind=tarfile.LNKTYPE, link="lab-1/y"),
    "a pipe": packed(("lab-1/x", b""), kind=tarfile.FIFOTYPE),
    "two labs": packed(("lab-1/x", b"x"), ("lab-2/x", b"x")),
    "no files": packed(),
    "the beginning of an archive": packed(("lab-1/x", b"x" * 10_000))[:-40],
    "a login page": b"<html>log in</html>",
    "nothing": b"",
}


@pytest.mark.parametrize("archive", INVALID_ARCHIVES.values(), ids=INVALID_ARCHIVES)
def test_an_invalid_archive_leaves_nothing_behind(tmp_path: Path, archive: bytes) -> None:
    output = tmp_path / "output"
    with pytest.raises(ValueError, match="the artifacts "):
        unpack_artifacts(archive, output)
    assert paths_below(tmp_path) == ["output"]


def test_the_unpacked_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_BYTES", 1000)
    monkeypatch.setattr(artifacts, "MAX_FILES", 3)
    for archive in (packed(("lab-1/x", bytes(1001))), packed(*((f"lab-1/{number}", b"") for number in range(4)))):
        with pytest.raises(ValueError, match="more than"):
            unpack_artifacts(archive, tmp_path)
    assert paths_below(tmp_path) == []
