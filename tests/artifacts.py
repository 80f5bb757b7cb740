"""Archives of artifacts, for tests."""

from __future__ import annotations

import io
import tarfile

import httpx


def unpack(answer: httpx.Response) -> dict[str, bytes]:
    """The files of an archive, by their names below its one directory."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/gzip"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:gz") as archive:
        members = archive.getmembers()
        assert all(member.isfile() and not member.uname and not member.uid for member in members)
        assert len({member.name.split("/")[0] for member in members}) == 1
        return {member.name.partition("/")[2]: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]
