"""Shows what a program is waiting for: its turn in the queue, or the start of a lab."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from neops_remote_lab.client.waiting import duration, sentence
from neops_remote_lab.models.session import SessionStatusResponseDto

REFRESH_INTERVAL: Final = 1.0
"""Seconds between two updates of the status line."""
REPEAT_AFTER: Final = 60.0
"""Seconds after which a log repeats a line."""
SHORT: Final = 1.0
"""Seconds that the start of a lab may take without being shown."""


class Screen(Protocol):
    """A terminal or a log. Thread-safe.

    A terminal has a status line, which is rewritten in place and removed before other output. A log gets only permanent
    lines.
    """

    @property
    def lock(self) -> threading.RLock:
        """Held during each write; callers may hold it around several writes."""

    @property
    def is_interactive(self) -> bool:
        """Whether there is a status line."""

    def write_line(self, text: str) -> None:
        """Write permanent lines. The text may be untrusted."""

    def show(self, text: str) -> None:
        """Show a text in the status line."""

    def clear(self) -> None:
        """Remove the status line."""


def can_rewrite_lines() -> bool:
    """Whether a terminal of this process can show a status line: not in a CI job, and not if the terminal is dumb."""
    in_ci = os.environ.get("CI") or os.environ.get("BUILD_NUMBER")  # as pytest does
    return not in_ci and os.environ.get("TERM") != "dumb"


class Progress(ABC):
    """The progress of one process. Thread-safe."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a permanent line. It may contain untrusted text."""

    @abstractmethod
    def queued(self, status: SessionStatusResponseDto) -> None:
        """Show the position in the queue."""

    @abstractmethod
    def start(self, lab: str) -> None:
        """Show that the process waits for a lab."""

    @abstractmethod
    def phase(self, phase: str) -> None:
        """Show the phase of the start of that lab."""

    @abstractmethod
    def keep(self, lab: str, seconds: float) -> None:
        """Show that a lab is kept for the user, for so many seconds at most."""

    @abstractmethod
    def idle(self) -> None:
        """Show that the process is no longer waiting."""

    @contextmanager
    def starting(self, lab: str) -> Iterator[None]:
        """A context in which the process waits for a lab."""
        self.start(lab)
        try:
            yield
        finally:
            self.idle()

    @contextmanager
    def keeping(self, lab: str, seconds: float) -> Iterator[None]:
        """A context in which a lab is kept for the user."""
        self.keep(lab, seconds)
        try:
            yield
        finally:
            self.idle()


class ShownProgress(Progress):
    """The progress of a process, shown on a board together with that of other processes.

    Args:
        board: the board.
        source: name of the process.
    """

    def __init__(self, board: Board, source: str = "") -> None:
        self._board = board
        self._source = source
        self._queued_at: float | None = None
        self._lab = ""
        self._starts = 0

    def note(self, text: str) -> None:
        self._board.note(self._source, text)

    def queued(self, status: SessionStatusResponseDto) -> None:
        if status.position == 0:
            self.idle()
        else:
            self._queued_at = self._queued_at or self._board.now()
            log_key = ("queue", status.position)
            self._board.wait(self._source, log_key, lambda since: sentence(status, since), began=self._queued_at)

    def start(self, lab: str) -> None:
        self._lab, self._starts = lab, self._starts + 1
        self._board.wait(self._source, None, lambda _: f"{lab}: waiting for the lab", short=SHORT)

    def phase(self, phase: str) -> None:
        lab = self._lab
        self._board.wait(self._source, (lab, self._starts, phase), lambda _: f"{lab}: {phase}", short=SHORT)

    def keep(self, lab: str, seconds: float) -> None:
        def describe(since: float) -> str:
            return f"{lab} is kept for {duration(max(seconds - since, 0))} more: `neops-remote-lab down` lets it go"

        self._board.wait(self._source, None, describe)

    def idle(self) -> None:
        self._board.end(self._source)


@dataclass(frozen=True)
class Wait:
    """Something that a process waits for.

    Attributes:
        began: start of the wait, in seconds on the board's clock.
        changed: time of the last change, on the same clock.
        log_key: a log gets a line when this differs from the key of its last line; None: no line.
        describe: returns the text for a number of seconds since the last change.
        short: seconds after the start in which an interactive terminal shows nothing.
    """

    began: float
    changed: float
    log_key: object
    describe: Callable[[float], str]
    short: float


class Board:
    """Shows the latest wait of one or several processes on one screen.

    A status line is updated each second; a log gets a line for each change and each minute.

    Args:
        screen: the terminal or log.
        now: a monotonic clock, in seconds.
        name: begins each line.

    Attributes:
        screen: the terminal or log.
        now: the clock.
    """

    def __init__(self, screen: Screen, now: Callable[[], float] = time.monotonic, *, name: str = "remote lab") -> None:
        self.screen = screen
        self.now = now
        self._name = name
        self._waits: dict[str, Wait] = {}
        self._logged: object = None
        self._logged_at = 0.0
        self._notes: dict[str, str] = {}
        self._refresher: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False

    def note(self, source: str, text: str) -> None:
        """Write a line, unless another process has written the same one: all processes share one session."""
        known = text.partition("; giving up in")[0]
        with self.screen.lock:
            if self._notes.setdefault(known, source) == source and not self._closed:
                self.screen.write_line(f"{self._name}: {text}")

    def wait(
        self,
        source: str,
        log_key: object,
        describe: Callable[[float], str],
        *,
        began: float | None = None,
        short: float = 0,
    ) -> None:
        """Show a new wait of a process, or a change of its wait. For the arguments, see `Wait`."""
        with self.screen.lock:
            if self._closed:
                return
            now, known = self.now(), self._waits.pop(source, None)
            if not self._waits and known is None:
                self._logged_at = now
            began = began or (known.began if known else now)
            self._waits[source] = Wait(began, now, log_key, describe, short)
            self.show()
            if self._refresher is None:
                self._refresher = threading.Thread(target=self._refresh, name="remote-lab-progress", daemon=True)
                with suppress(RuntimeError):  # no thread can be started during interpreter shutdown
                    self._refresher.start()

    def end(self, source: str) -> None:
        """Show that a process is no longer waiting."""
        with self.screen.lock:
            self._waits.pop(source, None)
            if not self._waits:
                self.screen.clear()
                self._wake.set()

    def close(self) -> None:
        """Stop writing."""
        with self.screen.lock:
            self._closed = True
            for source in list(self._waits):
                self.end(source)

    def show(self) -> None:
        """Show the latest wait, if it is due."""
        with self.screen.lock:
            if not self._waits:
                return
            wait, now = list(self._waits.values())[-1], self.now()
            took, text = now - wait.began, wait.describe(now - wait.changed)
            if self.screen.is_interactive:
                if took >= wait.short:
                    self.screen.show(f"{self._name} [{duration(took)}]: {text}")
            elif wait.log_key is not None and wait.log_key != self._logged:
                self.screen.write_line(f"{self._name}: {text}")
                self._logged, self._logged_at = wait.log_key, now
            elif now - self._logged_at >= REPEAT_AFTER:
                self.screen.write_line(f"{self._name} [{duration(took)}]: {text}")
                self._logged_at = now

    def _refresh(self) -> None:
        while True:
            self._wake.wait(REFRESH_INTERVAL)
            with self.screen.lock:
                self._wake.clear()
                if not self._waits:
                    self._refresher = None
                    return
                self.show()
