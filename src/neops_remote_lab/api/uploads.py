"""Receives an upload: `multipart/form-data`, streamed to disk part by part, with limits.

A file name is checked when its part begins, before any of its content is written. An upload that is too large is
stopped as soon as it exceeds a limit.
"""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from pydantic import TypeAdapter, ValidationError
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.api.form_headers import boundary_of, names_of
from neops_remote_lab.api.settings import UploadSettings
from neops_remote_lab.core.file_names import TOPOLOGY_FILE, collision, extra_file_name, topology_name
from neops_remote_lab.core.identity import EXECUTABLE_MARK, identity_of
from neops_remote_lab.core.reserved_names import is_ignored
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Upload
from neops_remote_lab.netlab.output import scrub
from neops_remote_lab.netlab.workspace import (
    Workspace,
    create_lab_directory,
    make_executable,
    new_lab_id,
    remove_workspace,
)
from neops_remote_lab.netlab.yaml_check import check_topology

BATCH_BYTES: Final = 256 * 1024
"""How much is read from the socket before a thread writes it to disk."""
MAX_FIELD_BYTES: Final = 4096
"""Maximum length of a text field, enough for a relative file name."""
MAX_HEADER_BYTES: Final = 8192
"""Maximum length of a part's header, enough for the longest relative file name in ASCII."""
MAX_OTHER_PARTS: Final = 16
"""Maximum number of parts besides `extra_files` and `executable`."""
MAX_SHOWN: Final = 50
"""Maximum length of untrusted text in a message."""

_BOOLEAN: Final = TypeAdapter(bool)


def _refuse(code: int, detail: str) -> HTTPException:
    """A refusal in the middle of a body. It closes the connection, so that the rest of the body is not read."""
    return HTTPException(code, detail=detail, headers={"Connection": "close"})


@contextmanager
def _full_disk_is_507() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = scrub(str(error.strerror))
        detail = f"the upload cannot be written: {reason}. Free the disk of the lab host and try again"
        raise _refuse(status.HTTP_507_INSUFFICIENT_STORAGE, detail) from None


def _invalid(detail: str) -> HTTPException:
    """A refusal after the whole body was read."""
    return HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)


@dataclass
class _Part:
    name: str
    filename: str | None
    file: IO[bytes] | None = None
    path: Path | None = None
    ignored: bool = False
    """The file is read but not stored."""
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    value: bytearray = field(default_factory=bytearray)


class UploadReceiver:
    """Writes the bytes of one upload to disk. All methods block and are thread-safe.

    No file stays open between two calls, because the next bytes may take long to arrive.
    """

    def __init__(self, content_type: str, settings: UploadSettings, *, work_dir: Path, lab_host: str) -> None:
        """Raises HTTPException 422 if the body is not a multipart form."""
        self._settings = settings
        self._lab_host = lab_host
        self._base = work_dir / new_lab_id()
        self._staging = self._base / "upload"
        self._topology: _Part | None = None
        self._topology_name = ""
        self._extra: dict[PurePosixPath, str] = {}
        self._extra_bytes = 0
        self._executable: set[str] = set()
        self._ignored: set[str] = set()
        self._received = 0
        self._fields: dict[str, str] = {}
        self._parts = 0
        self._part: _Part | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._header = (bytearray(), bytearray())
        self._ended = self._discarded = False
        self._turn = threading.Lock()
        parts = 2 * settings.max_extra_files + MAX_OTHER_PARTS
        self._max_parts = parts
        # No valid form is larger. Bytes after the last boundary count too.
        self._max_bytes = settings.max_topology_bytes + settings.max_extra_bytes + parts * 2 * MAX_HEADER_BYTES
        try:
            self._parser = self._new_parser(content_type)
        except (ValueError, FormParserError) as error:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, f"the form cannot be read: {error}") from None

    def _new_parser(self, content_type: str) -> MultipartParser:
        return MultipartParser(
            boundary_of(content_type),
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": lambda data, start, end: self._write(data[start:end]),
                "on_part_end": self._close,
                "on_end": self._end,
            },
            max_header_size=MAX_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """Process the next bytes. Raises HTTPException if they are refused."""
        self._received += len(data)
        if self._received > self._max_bytes:
            raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, f"the form is larger than {self._max_bytes} bytes")
        with self._turn, _full_disk_is_507():
            if self._discarded:
                return  # this call was cancelled while it waited for a thread
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, f"the form cannot be read: {error}") from None
            finally:
                self._close_file()

    def finish(self) -> Upload:
        """Check and return the complete upload. Raises HTTPException if a part is missing or invalid."""
        with self._turn, _full_disk_is_507():
            return self._finish()

    def _finish(self) -> Upload:
        if not self._ended:
            raise _invalid("the form ends before its last boundary")
        if (topology := self._topology) is None or topology.path is None:
            raise _invalid("the form lacks the file field 'topology'")
        reuse = boolean("the field 'reuse'", self._fields.get("reuse", "true"))
        self._make_executable()
        try:
            check_topology(topology.path.read_bytes(), max_nodes=self._settings.max_yaml_nodes)
        except ValueError as error:
            raise _invalid(str(error)) from None
        workspace = Workspace(
            self._base.name,
            self._base,
            self._topology_name,
            identity_of(topology.digest.hexdigest(), {str(name): digest for name, digest in self._extra.items()}),
        )
        self._staging.rename(workspace.directory)
        return Upload(workspace, reuse)

    def _make_executable(self) -> None:
        for relative in {PurePosixPath(name) for name in self._executable - self._ignored}:
            if relative not in self._extra:
                shown = str(relative)[:MAX_SHOWN]
                raise _invalid(f"the field 'executable' names {shown!r}, which is not an extra file of this upload")
            make_executable(self._staging / relative)
            self._extra[relative] += EXECUTABLE_MARK

    def discard(self) -> None:
        """Remove everything that was written, after a running call has ended."""
        with self._turn:
            self._discarded = True
            remove_workspace(self._base)

    def _close_file(self) -> None:
        if (part := self._part) and part.file:
            file, part.file = part.file, None
            file.close()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_parts:
            raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, "the form has too many parts")
        self._headers = []

    def _header_end(self) -> None:
        self._headers.append((bytes(self._header[0]).lower(), bytes(self._header[1])))
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        try:
            name, filename = names_of(dict(self._headers).get(b"content-disposition", b""))
        except ValueError as error:
            raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, str(error)) from None
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
        if relative is None:
            part.ignored = True
            return
        create_lab_directory(self._base, self._lab_host)
        part.path = self._staging / relative
        part.path.parent.mkdir(parents=True, exist_ok=True)
        part.path.touch(exist_ok=False)

    def _place(self, part: _Part, filename: str) -> PurePosixPath | None:
        """The path of a file below the directory of the topology; None for a file that is not stored."""
        if part.name == "topology":
            if self._topology:
                raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, "the form has more than one 'topology'")
            self._topology_name = topology_name(filename)
            self._topology = part
            return PurePosixPath(TOPOLOGY_FILE)
        if part.name == "extra_files":
            if len(self._extra) + len(self._ignored) >= self._settings.max_extra_files:
                limit = self._settings.max_extra_files
                raise _refuse(status.HTTP_413_CONTENT_TOO_LARGE, f"there are more than {limit} extra files")
            if is_ignored(filename):
                self._ignored.add(filename)
                return None
            relative = extra_file_name(filename)
        else:
            raise _refuse(
                status.HTTP_422_UNPROCESSABLE_CONTENT, f"the form has an unknown file field {part.name[:MAX_SHOWN]!r}"
            )
        if collision(self._extra, relative):
            raise ValueError(f"the file name {filename!r} is taken by another file of this upload")
        self._extra[relative] = ""
        return relative

    def _write(self, data: bytes) -> None:
        if (part := self._part) is None:
            return
        part.size += len(data)
        if part.filename is None:
            part.value.extend(data)
            if part.size > MAX_FIELD_BYTES:
                detail = f"the field {part.name[:MAX_SHOWN]!r} is too long"
                raise _refuse(status.HTTP_422_UNPROCESSABLE_CONTENT, detail)
            return
        self._check_size(part, len(data))
        if part.path is None:
            return
        part.digest.update(data)
        part.file = part.file or part.path.open("ab")
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
        self._close_file()
        part, self._part = self._part, None
        if part is None:
            return
        if part.filename is None:
            value = part.value.decode("utf-8", "replace")
            if part.name == "executable":
                self._executable.add(value)
            else:
                self._fields[part.name] = value
        if part.name == "extra_files" and part.path:
            self._extra[PurePosixPath(part.path.relative_to(self._staging).as_posix())] = part.digest.hexdigest()

    def _end(self) -> None:
        self._ended = True


async def receive(
    content_type: str,
    chunks: AsyncIterator[bytes],
    settings: UploadSettings,
    run_blocking: RunBlocking,
    *,
    work_dir: Path,
    lab_host: str,
) -> Upload:
    """Receive an upload into a new workspace, which is removed again if the upload is refused or aborted.

    Args:
        work_dir: parent of the new workspace.
        lab_host: the host recorded in the workspace.

    Raises:
        HTTPException: 400, 413 or 422 if the upload is invalid, 408 if it stalls, 507 if the disk is full.
        starlette.requests.ClientDisconnect: the client disconnected.
    """
    receiver = UploadReceiver(content_type, settings, work_dir=work_dir, lab_host=lab_host)
    batch = bytearray()
    try:
        async for chunk in _in_time(chunks, settings.upload_timeout):
            batch += chunk
            if len(batch) >= BATCH_BYTES:
                await run_blocking(receiver.feed, bytes(batch))
                batch.clear()
        await run_blocking(receiver.feed, bytes(batch))
        upload: Upload = await run_blocking(receiver.finish)
    except BaseException:
        # Shielded, because a second cancellation must not interrupt the removal.
        await asyncio.shield(asyncio.ensure_future(run_blocking(receiver.discard)))
        raise
    return upload


async def _in_time(chunks: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The chunks of a body. Raises HTTPException 408 if the next one takes longer than `seconds`."""
    while True:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _refuse(HTTPStatus.REQUEST_TIMEOUT, f"no byte of the upload came for {seconds:g} s") from None
        yield chunk


def boolean(what: str, text: str) -> bool:
    """Parse a form field or query parameter as a boolean. Raises HTTPException 422, with a message that begins with
    `what`."""
    try:
        return _BOOLEAN.validate_python(text.strip())
    except ValidationError:
        raise _invalid(f"{what} must be true or false, not {text[:MAX_SHOWN]!r}") from None
