"""Coordinates the processes of a pytest-xdist run: workers use labs one at a time, and hand over a shared lab.

The workers of one machine share a directory that the controller creates. It contains

- `lab.lock`: held by the worker that uses a lab or is about to. The operating system releases it when a worker dies.
- `lab.json`: the running lab and its reference, written under that lock, so that the next worker can use or release it.
- `waiting/`: one file per waiting worker, with the number of its test, and a lock that shows whether it is alive.
- `done/`: one file per test that is done with its lab, to find out whether the lab is still needed.
- `kept`: exists once the lab of a failed test was kept for the user, which happens once in a run.
- `failed/`: one file per lab that failed to start, so that it is not started again for each of its tests.

A worker on another machine has no such directory. It never shares a lab, and the server keeps its labs separate.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pytest
from filelock import FileLock, Timeout

from neops_remote_lab.testing.labs import labs_of, url_of

POLL_INTERVAL = 0.05
"""Seconds between two checks whether the lab is free."""


@dataclass(frozen=True)
class KeptLab:
    """A running lab that another worker can take over.

    Attributes:
        key: `LabSpec.key`.
        reference: the idempotency key of its acquire.
        devices: its devices, as dumped by `DeviceInfoDto`.
    """

    key: str
    reference: str
    devices: list[dict[str, Any]]


class LabsOfOneProcess:
    """The implementation for a run without other processes, and the interface of all implementations."""

    passes_labs_on = False
    """Whether other processes may take over a lab of this one."""
    may_reuse = True
    """Whether a lab that is already running on the server may be used."""

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}
        self._has_kept = False

    def for_host(self, url: str | None) -> Self:  # noqa: ARG002 - used by a subclass
        """The implementation for the labs of another lab host, which a marker names. It shares the lock of this one."""
        return type(self)()

    def take(self, item: pytest.Item) -> KeptLab | None:  # noqa: ARG002 - for the classes below
        """Wait until no other worker uses a lab. Returns the lab that the previous worker left running, if any."""
        return None

    def drop(self) -> None:
        """Let other workers use the lab."""

    def keep(self, lab: KeptLab | None) -> None:
        """Record which lab is running. Call it only between `take` and `drop`."""

    def finish(self, key: str, test: str) -> None:
        """Record that a test is done with its lab."""

    def is_needed(self, key: str) -> bool:  # noqa: ARG002 - for the class below
        """Whether another worker may still need this lab."""
        return False

    def has_kept(self) -> bool:
        """Whether the run has kept the lab of a failed test for its user."""
        return self._has_kept

    def note_kept(self) -> None:
        """Remember that it has."""
        self._has_kept = True

    def failure(self, key: str) -> str | None:
        """Why a lab failed to start in this run; None if it did not fail."""
        return self._failures.get(key)

    def note_failure(self, key: str, reason: str | None) -> None:
        """Record why a lab failed to start; None clears the record."""
        if reason is None:
            self._failures.pop(key, None)
        else:
            self._failures[key] = reason


class LabsApart(LabsOfOneProcess):
    """The implementation for a worker on another machine: it shares only the session, never a lab."""

    may_reuse = False


class LabsAmongWorkers(LabsOfOneProcess):
    """The implementation for workers on one machine.

    Args:
        directory: the run's directory, accessible only to its user.
        worker: the name of this worker.
        copies: how many workers run each test; more than one with `--dist each`.
    """

    passes_labs_on = True

    def __init__(self, directory: Path, worker: str, copies: int) -> None:
        self._directory, self._worker, self._copies = directory, worker, copies
        for name in ("waiting", "done", "failed"):
            directory.joinpath(name).mkdir(exist_ok=True)
        self._lock = FileLock(directory / "lab.lock")
        self._kept = directory / "lab.json"
        self._place = directory / "waiting" / worker
        self._alive = FileLock(directory / "waiting" / f"{worker}.lock")
        self._alive.acquire()
        self._host: str | None = None
        self._tests: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}

    def for_host(self, url: str | None) -> Self:
        other = copy.copy(self)  # with the same locks
        other._host, other._tests, other._numbers = url, Counter(), {}
        other._kept = self._directory / f"lab-{_name(str(url))}.json"
        return other

    def take(self, item: pytest.Item) -> KeptLab | None:
        number = self._number(item)
        _write(self._place, str(number))
        try:
            while not (self._is_first(number) and self._try_lock()):
                time.sleep(POLL_INTERVAL)
        finally:
            self._place.unlink(missing_ok=True)
        text = _read(self._kept)
        return KeptLab(**json.loads(text)) if text else None

    def drop(self) -> None:
        self._lock.release()

    def keep(self, lab: KeptLab | None) -> None:
        if lab is None:
            self._kept.unlink(missing_ok=True)
        else:
            _write(self._kept, json.dumps(asdict(lab)))

    def finish(self, key: str, test: str) -> None:
        done = self._done(key)
        done.mkdir(exist_ok=True)
        done.joinpath(_name(f"{test} {self._worker}" if self._copies > 1 else test)).touch()

    def is_needed(self, key: str) -> bool:
        if not self._tests[key]:
            return True  # tests request it at run time, so their number is unknown
        done = self._done(key)
        return len(list(done.iterdir()) if done.exists() else []) < self._tests[key] * self._copies

    def has_kept(self) -> bool:
        return (self._directory / "kept").exists()

    def note_kept(self) -> None:
        (self._directory / "kept").touch()

    def failure(self, key: str) -> str | None:
        return _read(self._directory / "failed" / self._name_of(key))

    def note_failure(self, key: str, reason: str | None) -> None:
        path = self._directory / "failed" / self._name_of(key)
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, reason)

    def _number(self, item: pytest.Item) -> int:
        """The position of a test in the order of the run, which is the same in all workers."""
        if not self._numbers:
            items = item.session.items
            self._numbers = {other.nodeid: number for number, other in enumerate(items)}
            self._tests.update(spec.key for other in items if url_of(other) == self._host for spec in labs_of(other))
        return self._numbers.get(item.nodeid, 0)

    def _is_first(self, number: int) -> bool:
        """Whether no living worker waits with an earlier test. This keeps the tests of one lab together."""
        for place in (self._directory / "waiting").iterdir():
            if place.suffix or place == self._place:
                continue
            text = _read(place)
            if text and int(text) < number:
                if self._is_alive(place.name):
                    return False
                place.unlink(missing_ok=True)
        return True

    def _is_alive(self, worker: str) -> bool:
        lock = FileLock(self._directory / "waiting" / f"{worker}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def _try_lock(self) -> bool:
        with contextlib.suppress(Timeout):
            self._lock.acquire(timeout=0)
            return True
        return False

    def _name_of(self, key: str) -> str:
        return _name(key if self._host is None else f"{self._host}\0{key}")

    def _done(self, key: str) -> Path:
        return self._directory / "done" / self._name_of(key)


def _name(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8", errors="surrogateescape")
    draft.replace(path)
