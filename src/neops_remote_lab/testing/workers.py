"""The one lab of a run among its processes: the workers of pytest-xdist take turns, and pass a shared lab on.

The workers of one machine share a directory, which the controller makes. In it lie

- `lab.lock`: held by the worker that has the lab, or is about to have it. The system lets go of it when a worker dies.
- `lab.json`: the lab that runs and the reference that keeps it, written under that lock, so that the next worker can
  go on with the lab or release it;
- `waiting/`: one file a worker that waits, with the number of its test, and a lock that tells whether it is alive;
- `done/`: one file a test that is done with its lab, from which follows whether the lab is still needed;
- `failed/`: one file a lab that could not be started, which is not tried again for each of its tests.

A worker on another machine has no such directory. Its labs are never shared, and the server keeps them apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from neops_remote_lab.testing.labs import labs_of

POLL_INTERVAL = 0.05
"""Seconds between two looks at whether the lab is free."""


@dataclass(frozen=True)
class KeptLab:
    """A lab that runs, and what the next worker has to know of it.

    Attributes:
        key: `LabSpec.key`.
        reference: the idempotency key of the acquire that it was started with.
        devices: its devices, as `DeviceInfoDto` prints them.
    """

    key: str
    reference: str
    devices: list[dict[str, Any]]


class LabsOfOneProcess:
    """The same questions where there is nobody to share a lab with."""

    passes_labs_on = False
    """Whether other processes may go on with a lab of this one."""
    may_reuse = True
    """Whether a lab that the server has already may be used."""

    def __init__(self) -> None:
        self._failures: dict[str, str] = {}

    def take(self, item: pytest.Item) -> KeptLab | None:  # noqa: ARG002 - for the classes below
        """Wait until no other worker has the lab; what is left of the one that had it before."""
        return None

    def drop(self) -> None:
        """Let the other workers have the lab."""

    def keep(self, lab: KeptLab | None) -> None:
        """Write down which lab runs. Only between `take` and `drop`."""

    def finish(self, key: str, test: str) -> None:
        """Write down that a test is done with its lab."""

    def is_needed(self, key: str) -> bool:  # noqa: ARG002 - for the class below
        """Whether another worker may go on with this lab."""
        return False

    def failure(self, key: str) -> str | None:
        """Why a lab could not be started in this run."""
        return self._failures.get(key)

    def note_failure(self, key: str, reason: str | None) -> None:
        """Remember why a lab could not be started, or forget it."""
        if reason is None:
            self._failures.pop(key, None)
        else:
            self._failures[key] = reason


class LabsApart(LabsOfOneProcess):
    """A worker that shares nothing but the session: the server tears a lab down before another worker has one."""

    may_reuse = False


class LabsAmongWorkers(LabsOfOneProcess):
    """The workers of one machine.

    Args:
        directory: a directory of the run that only its user can enter.
        worker: the name of this worker.
        copies: how many workers run each test: more than one for `--dist each`.
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
        self._tests: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}

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
            return True  # tests ask for it at run time, and nobody knows how many
        done = self._done(key)
        return len(list(done.iterdir()) if done.exists() else []) < self._tests[key] * self._copies

    def failure(self, key: str) -> str | None:
        return _read(self._directory / "failed" / _name(key))

    def note_failure(self, key: str, reason: str | None) -> None:
        path = self._directory / "failed" / _name(key)
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, reason)

    def _number(self, item: pytest.Item) -> int:
        """The number of a test in the order of the run, which is the same in every worker."""
        if not self._numbers:
            items = item.session.items
            self._numbers = {other.nodeid: number for number, other in enumerate(items)}
            self._tests.update(spec.key for other in items for spec in labs_of(other))
        return self._numbers.get(item.nodeid, 0)

    def _is_first(self, number: int) -> bool:
        """Whether no living worker waits with an earlier test: so a lab is not left while tests of it wait."""
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

    def _done(self, key: str) -> Path:
        return self._directory / "done" / _name(key)


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
