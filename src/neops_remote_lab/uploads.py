"""A lab's upload: `multipart/form-data`, streamed to disk under limits, part by part as it arrives.

A name that is refused is refused when its part begins, before a byte of it is written; an upload that is too large is
stopped where it crosses the limit.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from pydantic import TypeAdapter, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.netlab import workspace
from neops_remote_lab.netlab.topology import (
    GENERATED,
    TOPOLOGY_FILE,
    check_topology,
    collision,
    is_the_topology,
    relative_name,
    topology_name,
)
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.settings import Settings

BATCH_BYTES: Final = 256 * 1024
"""So much is taken from the socket before a thread is asked to write it."""
MAX_FIELD_BYTES: Final = 1024
MAX_HEADER_BYTES: Final = 8192
MAX_PARTS_BESIDE_FILES: Final = 16

_BOOLEAN: Final = TypeAdapter(bool)

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a blocking function with its arguments in a thread."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent: a work folder with the topology and its extra files."""

    workspace: Workspace
    reuse: bool


def _refuse(code: int, detail: str) -> HTTPException:
    # The connection is closed, or the rest of the body would still be read, and thrown away.
    return HTTPException(code, detail=detail, headers={"Connection": "close"})


@dataclass
class _Part:
    name: str
    filename: str | None
    file: IO[bytes] | None = None
    path: Path | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    value: bytearray = field(default_factory=bytearray)


class UploadReceiver:
    """Takes the bytes of one upload. All methods block; they are called one after the other, from any thread."""

    def __init__(self, content_type: str, settings: Settings) -> None:
        """Raises HTTPException 422 when the body is no multipart form."""
        self._settings = settings
        self._base = settings.work_dir / workspace.new_lab_id()
        self._staging = self._base / "upload"
        self._topology: _Part | None = None
        self._topology_name = ""
        self._extra: dict[PurePosixPath, str] = {}
        self._extra_bytes = 0
        self._fields: dict[str, str] = {}
        self._parts = 0
        self._part: _Part | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._header = (bytearray(), bytearray())
        self._ended = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._collect(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._collect(1, data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": lambda data, start, end: self._write(data[start:end]),
                "on_part_end": self._close,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises HTTPException when they are refused."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, f"the form cannot be read: {error}") from None
        except OSError as error:
            detail = f"the upload cannot be written: {error.strerror}. Free the disk of the lab host and try again"
            raise _refuse(status.HTTP_507_INSUFFICIENT_STORAGE, detail) from None

    def finish(self) -> Upload:
        """The whole upload. Raises HTTPException when something is missing or is no topology."""
        if not self._ended:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "the form ends before its last boundary")
        if (topology := self._topology) is None or topology.path is None:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "the form lacks the file field 'topology'")
        try:
            check_topology(topology.path.read_bytes(), max_nodes=self._settings.max_yaml_nodes)
        except ValueError as error:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, str(error)) from None
        reuse = boolean("the field 'reuse'", self._fields.get("reuse", "true"))
        made = Workspace(
            self._base.name,
            self._base,
            self._topology_name,
            workspace.identity(
                topology.digest.hexdigest(), {str(name): digest for name, digest in self._extra.items()}
            ),
        )
        self._staging.rename(made.folder)
        return Upload(made, reuse)

    def discard(self) -> None:
        """Remove whatever has been written."""
        if self._part and self._part.file:
            self._part.file.close()
        workspace.remove(self._base)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._settings.max_extra_files + MAX_PARTS_BESIDE_FILES:
            raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, "the form has too many parts")
        self._headers = []

    def _collect(self, which: int, data: bytes) -> None:
        self._header[which].extend(data)
        if len(self._header[which]) > MAX_HEADER_BYTES:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "a header of the form is too long")

    def _header_end(self) -> None:
        self._headers.append((bytes(self._header[0]).lower(), bytes(self._header[1])))
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        disposition = dict(self._headers).get(b"content-disposition", b"").decode("utf-8", "replace")
        name, filename = _parameter(disposition, "name"), _parameter(disposition, "filename")
        if name is None:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "a part of the form has no name")
        self._part = part = _Part(name, filename)
        if filename is None:
            if name in ("topology", "extra_files"):
                raise _refuse(
                    status.HTTP_422_UNPROCESSABLE_CONTENT, f"the field {name!r} must be a file, with a file name"
                )
            return
        try:
            relative = self._place(part, filename)
        except ValueError as error:
            raise _refuse(status.HTTP_400_BAD_REQUEST, str(error)) from None
        part.path = self._staging / relative
        part.path.parent.mkdir(parents=True, exist_ok=True)
        part.file = part.path.open("xb")

    def _place(self, part: _Part, filename: str) -> PurePosixPath:
        if part.name == "topology":
            if self._topology:
                raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "the form has more than one 'topology'")
            self._topology_name = topology_name(filename)
            self._topology = part
            return PurePosixPath(TOPOLOGY_FILE)
        if part.name == "extra_files":
            relative = relative_name(filename)
            if str(relative).lower() in GENERATED:
                raise ValueError(
                    f"the file name {filename!r} is one that netlab writes itself: name the file otherwise"
                )
            if is_the_topology(relative):
                raise ValueError(f"the file name {filename!r} is that of the topology on the host: name it otherwise")
            if len(self._extra) >= self._settings.max_extra_files:
                limit = self._settings.max_extra_files
                raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, f"there are more than {limit} extra files")
        else:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, f"the form has an unknown file field {part.name!r}")
        if collision(self._extra, relative):
            raise ValueError(f"the file name {filename!r} is taken by another file of this upload")
        self._extra[relative] = ""
        return relative

    def _write(self, data: bytes) -> None:
        if (part := self._part) is None:
            return
        part.size += len(data)
        if part.file is None:
            part.value.extend(data)
            if part.size > MAX_FIELD_BYTES:
                raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, f"the field {part.name!r} is too long")
            return
        self._check_size(part, len(data))
        part.digest.update(data)
        part.file.write(data)

    def _check_size(self, part: _Part, added: int) -> None:
        if part.name == "topology":
            limit, size, what = self._settings.max_topology_bytes, part.size, "the topology is"
        else:
            self._extra_bytes += added
            limit, size, what = self._settings.max_extra_bytes, self._extra_bytes, "the extra files together are"
        if size > limit:
            raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, f"{what} larger than {limit} bytes")

    def _close(self) -> None:
        part, self._part = self._part, None
        if part is None:
            return
        if part.file is None:
            self._fields[part.name] = part.value.decode("utf-8", "replace")
            return
        part.file.close()
        if part.name == "extra_files" and part.path:
            self._extra[PurePosixPath(part.path.relative_to(self._staging).as_posix())] = part.digest.hexdigest()

    def _end(self) -> None:
        self._ended = True


async def receive(
    content_type: str, chunks: AsyncIterator[bytes], settings: Settings, run_blocking: RunBlocking
) -> Upload:
    """Receive an upload; nothing of it is left when it is refused or breaks off.

    Raises:
        HTTPException: 400, 413 or 422, with what is wrong; 507 when the disk is full.
        starlette.requests.ClientDisconnect: the client went away.
    """
    receiver = UploadReceiver(content_type, settings)
    batch = bytearray()
    try:
        async for chunk in chunks:
            batch += chunk
            if len(batch) >= BATCH_BYTES:
                await run_blocking(receiver.feed, bytes(batch))
                batch.clear()
        await run_blocking(receiver.feed, bytes(batch))
        upload: Upload = await run_blocking(receiver.finish)
    except BaseException:
        await run_blocking(receiver.discard)
        raise
    return upload


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise _refuse(
            status.HTTP_422_UNPROCESSABLE_CONTENT,
            "the body must be multipart/form-data with the file field 'topology'",
        )
    return boundary.encode()


def _parameter(disposition: str, name: str) -> str | None:
    message = Message()
    message["Content-Disposition"] = disposition.replace("\r", "").replace("\n", "")
    value = message.get_param(name, header="Content-Disposition")
    if isinstance(value, tuple):  # RFC 2231: charset, language, text
        return value[2]
    return value


def boolean(what: str, text: str) -> bool:
    """The truth of a form field or query parameter. Raises HTTPException 422, naming `what`."""
    try:
        return _BOOLEAN.validate_python(text.strip())
    except ValidationError:
        detail = f"{what} must be true or false, not {text[:50]!r}"
        raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, detail) from None
