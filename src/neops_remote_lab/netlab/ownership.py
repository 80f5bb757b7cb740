"""Proves which directories are ours: a marker in the work directory, and a record in each lab directory.

Nothing without that proof is ever removed. Each process holds a lock file of its own, which the records of its lab
directories name. A lab directory is abandoned once its process has ended and the lock is free.
"""

import errno
import getpass
import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from filelock import FileLock, Timeout

from neops_remote_lab.core.text import one_line
from neops_remote_lab.netlab.logs import FAILED

logger = logging.getLogger(__name__)

PROGRAM: Final = "neops-remote-lab"
MARKER_DIR: Final = f".{PROGRAM}"
"""Contains the marker, the lock of the server, and the locks of the owners."""
RECORD: Final = "lab.json"
GUARD_TIMEOUT: Final = 10.0
"""Seconds to wait while another process creates or removes an owner's lock file."""

_LAB_ID: Final = re.compile(r"[0-9a-f]{16}")
_DRAFT: Final = re.compile(r"\.new-[0-9a-f]{16}")
_owners: dict[tuple[Path, str], FileLock] = {}
"""This process's owner lock for each work directory; held until the process ends."""
_owners_guard = threading.Lock()


class Record(NamedTuple):
    """The record in a lab directory."""

    lab_id: str
    host: str
    work_dir: str
    """The id in the work directory's marker."""
    owner: str
    """The name of the lock file that the owning process holds."""
    number: int | None = None
    """The lab's number among the labs of its host. None for a lab that runs alone on its host."""

    def content(self) -> dict[str, Any]:
        """The content of the file."""
        return {"program": PROGRAM} | {key: value for key, value in self._asdict().items() if value is not None}


def claim(root: Path) -> str:
    """Return the id of a work directory. A missing or empty directory is created and marked as ours.

    Raises:
        PermissionError: the directory is not ours; `strerror` is a sentence for the operator.
        OSError: the directory cannot be created.
    """
    _require_owned(root)
    if (known := _marker(root)) is not None:
        return known
    if any(entry.name != MARKER_DIR for entry in root.iterdir()):
        if (known := _marker(root)) is None:  # another process may have claimed it meanwhile
            raise _refusal(root, "has content, and no marker of this program")
        return known
    (root / MARKER_DIR).mkdir(mode=0o700, exist_ok=True)
    content = {"program": PROGRAM, "id": secrets.token_hex(16), **origin()}
    draft = root / MARKER_DIR / f"draft-{secrets.token_hex(8)}"
    _write(draft, content)
    try:
        os.link(draft, root / MARKER_DIR / "work-dir.json")
    except FileExistsError:
        logger.debug("another process has claimed %s", root)
    finally:
        draft.unlink()
    if (known := _marker(root)) is None:
        raise _refusal(root, "has a marker that cannot be read")
    return known


def _require_owned(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    link, real = root.lstat(), root.stat()
    if link.st_uid not in (0, os.geteuid()) or real.st_uid != os.geteuid():
        raise _refusal(root, f"belongs to another user (uid {real.st_uid})")


def _refusal(root: Path, why: str) -> PermissionError:
    return PermissionError(
        errno.EACCES, f"the work directory {root} {why}. Name a new or an empty directory with --work-dir"
    )


def _marker(root: Path) -> str | None:
    known = _read(root / MARKER_DIR / "work-dir.json")
    identifier = known.get("id")
    return identifier if known.get("program") == PROGRAM and isinstance(identifier, str) else None


def origin() -> dict[str, str]:
    """Host, user and current time, for a note about this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user has no passwd entry
        user = str(os.geteuid())
    return {
        "host": socket.gethostname(),
        "user": user,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def hold_server_lock(root: Path, note: Mapping[str, Any], timeout: float = 0) -> FileLock:
    """Acquire the lock for the one server of a work directory. The caller must keep the returned lock.

    Args:
        note: describes this server, for the message of a second one.
        timeout: seconds to wait for the lock.

    Raises:
        BlockingIOError: another server holds the lock; the message names it.
        The exceptions of `claim`.
    """
    claim(root)
    lock = FileLock(root / MARKER_DIR / "server.lock", thread_local=False, mode=0o600)
    path = root / MARKER_DIR / "server.json"
    try:
        lock.acquire(timeout=timeout)
    except Timeout:
        known = _read(path)
        named = one_line(", ".join(f"{key} {value}" for key, value in known.items())) or "its note cannot be read"
        raise BlockingIOError(f"another server uses the work directory {root}: {named}") from None
    path.unlink(missing_ok=True)
    _write(path, dict(note))
    return lock


def new_directory(root: Path, lab_id: str, host: str) -> Path:
    """Create a lab directory with its record, atomically. Raises the exceptions of `claim`."""
    work_dir = claim(root)
    record = Record(lab_id, host, work_dir, _owner(root, work_dir))
    draft = root / f".new-{lab_id}"
    with _guard(root):  # `tidy` must not find the directory without its record
        draft.mkdir(mode=0o700)
        draft.chmod(root.stat().st_mode & 0o777)  # users who may enter the work directory may read its labs
        _write(draft / RECORD, record.content())
    return draft.rename(root / lab_id)


def proof(base: Path) -> Record | None:
    """The record of a lab directory that is provably ours; None for any other."""
    if base.is_symlink() or not base.is_dir():
        return None
    known = _read(base / RECORD)
    number = known.pop("number", None)
    fields = [known.get(field) for field in Record._fields if field != "number"]
    if known.get("program") != PROGRAM or not all(isinstance(field, str) for field in fields):
        return None
    record = Record._make([*fields, number if isinstance(number, int) else None])
    return record if record.lab_id == base.name and record.work_dir == _marker(base.parent) else None


def is_abandoned(base: Path, host: str) -> bool:
    """Whether a directory belongs to a lab of this host whose owner process has ended.

    A directory that no longer exists counts as abandoned if its name is a lab id: the lab may have other leftovers.
    """
    if not os.path.lexists(base):
        return _marker(base.parent) is not None and _LAB_ID.fullmatch(base.name) is not None
    record = proof(base)
    return record is not None and record.host == host and not _is_held(base.parent, record.owner)


def adopt(base: Path, host: str) -> None:
    """Make this process the owner of a lab of an earlier process. A directory that is not ours is not changed."""
    if (record := proof(base)) is None:
        return
    owner = _owner(base.parent, record.work_dir)
    _replace(base, record._replace(owner=owner, host=host))


def number_of(base: Path) -> int | None:
    """The number of a lab. None if it has none, or if the directory is not provably ours."""
    record = proof(base)
    return record.number if record else None


def numbers(root: Path) -> set[int]:
    """The numbers of all labs below a work directory, of any owner."""
    directories = root.iterdir() if root.is_dir() else ()
    return {number for path in directories if (number := number_of(path)) is not None}


def set_number(base: Path, number: int) -> None:
    """Record the number of a lab, durably.

    Raises:
        PermissionError: the directory is not provably ours.
    """
    if (record := proof(base)) is None:
        raise PermissionError(errno.EACCES, f"the directory {base.name} has no record of this server")
    _replace(base, record._replace(number=number))


def _replace(base: Path, record: Record) -> None:
    draft = base / f"{RECORD}.new"
    draft.unlink(missing_ok=True)  # of a process that was killed
    _write(draft, record.content())
    draft.replace(base / RECORD)


def remove(base: Path) -> None:
    """Remove a lab directory, its record last. A directory that is not provably ours is kept."""
    if proof(base) is None:
        if os.path.lexists(base):
            logger.error("%s is not removed: it has no record of a lab of this work directory", base)
        return
    for entry in base.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != RECORD:
            with suppress(OSError):
                entry.unlink()
    if [entry.name for entry in base.iterdir()] == [RECORD]:
        removed = base.with_name(f".new-{base.name}")  # `tidy` removes it if this process is killed before it does
        base.rename(removed)
        (removed / RECORD).unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            removed.rmdir()


def directories(root: Path) -> list[Path]:
    """The lab directories below a work directory, of any owner. Other entries are logged."""
    if not root.is_dir():
        return []
    ours = {path: proof(path) is not None for path in sorted(root.iterdir())}
    for path in (path for path, is_ours in ours.items() if not is_ours):
        if path.name not in {MARKER_DIR, FAILED} and not _DRAFT.fullmatch(path.name):
            logger.warning("%s has no record of a lab: it is kept", path)
    return [path for path, is_ours in ours.items() if is_ours]


def tidy(root: Path) -> None:
    """Remove lock files of processes that have ended, and lab directories that they had not finished creating."""
    if _marker(root) is None:
        return
    with _guard(root):
        drafts = [path for path in root.iterdir() if _DRAFT.fullmatch(path.name) and not path.is_symlink()]
        for draft in drafts:
            if not _is_held(root, _read(draft / RECORD)):
                with suppress(OSError):
                    (draft / RECORD).unlink(missing_ok=True)
                    draft.rmdir()
    named = {record.owner for path in root.iterdir() if (record := proof(path))}
    owners = root / MARKER_DIR / "owners"
    with _guard(root):
        for path in owners.iterdir() if owners.is_dir() else ():
            if path.name not in named and not _is_held(root, path.name):
                path.unlink(missing_ok=True)


def _owner(root: Path, work_dir: str) -> str:
    key = (root.resolve(), work_dir)
    with _owners_guard:
        if key not in _owners:
            owners = root / MARKER_DIR / "owners"
            owners.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(owners / secrets.token_hex(8), thread_local=False, mode=0o600)
            with _guard(root):
                lock.acquire(blocking=False)
            _owners[key] = lock
        return Path(_owners[key].lock_file).name


def _guard(root: Path) -> FileLock:
    return FileLock(root / MARKER_DIR / "owners.lock", timeout=GUARD_TIMEOUT, mode=0o600)


def _is_held(root: Path, owner: str | Mapping[str, Any]) -> bool:
    name = owner if isinstance(owner, str) else str(owner.get("owner", ""))
    path = root / MARKER_DIR / "owners" / Path(name).name
    if not name or not path.is_file():
        return False
    lock = FileLock(path, thread_local=False, mode=0o600)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a new file durably: it survives a power loss."""
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
