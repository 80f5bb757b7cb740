"""Uploads of a topology with its extra files, as a form whose files are read while they are sent."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.topology_files import TopologyFiles


class _LateFile:
    """A binary file for httpx that is open only while it is sent, because there may be more files than a process may
    open.

    A repeated request sends the file from its start again.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file does not exist."""
        self._path = path
        self._size = self._left = path.stat().st_size
        self._file: IO[bytes] | None = None

    def tell(self) -> int:
        return self._size - self._left

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Seek to the start, or return the size for SEEK_END."""
        if whence == os.SEEK_END:
            return self._size
        self.close()
        return offset

    def read(self, size: int) -> bytes:
        if not self._left:
            self.close()
            return b""
        self._file = self._file or self._path.open("rb")
        data = self._file.read(min(size, self._left))
        if not data:
            raise OSError(f"{self._path} has become shorter while it was sent")
        self._left -= len(data)
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._left = None, self._size


@contextmanager
def upload_of(topology: TopologyFiles, **fields: str) -> Iterator[dict[str, Any]]:
    """Arguments for `httpx.Client.request` that upload a topology, its extra files and form fields. They are reusable.

    Raises:
        OSError: a file is missing, or cannot be read.
        ValueError: the lab host refuses a file's name.
    """
    extra = topology.found()
    data = fields | {"executable": [file.name for file in extra if file.executable]}
    files: list[tuple[str, tuple[str, bytes | IO[bytes], str]]] = [
        ("topology", (one_line(topology.path.name), topology.path.read_bytes(), "application/yaml"))
    ]
    with ExitStack() as opened:
        for file in extra:
            late = _LateFile(file.path)
            opened.callback(late.close)
            files.append(("extra_files", (file.name, cast("IO[bytes]", late), "application/octet-stream")))
        yield {"files": files, "data": data}
