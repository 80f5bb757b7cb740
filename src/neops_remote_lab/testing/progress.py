"""Tells what a run waits for: its turn in the queue, and a lab that starts."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from neops_remote_lab.client.waiting import duration, sentence
from neops_remote_lab.models.session import SessionStatusResponseDto
from neops_remote_lab.testing.screen import Screen

TICK: Final = 1.0
"""Seconds between two changes of the changing line."""
REPEAT_AFTER: Final = 60.0
"""Seconds after which a log gets the same line again."""
SHORT: Final = 1.0
"""Seconds for which a lab may start without a word."""


class Progress(ABC):
    """What one process of a run tells of itself. Threads may share it."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Tell something that stays to be read. Text from outside need not be escaped."""

    @abstractmethod
    def queued(self, status: SessionStatusResponseDto) -> None:
        """Tell the place in the queue."""

    @abstractmethod
    def start(self, lab: str) -> None:
        """Tell that a lab is waited for."""

    @abstractmethod
    def phase(self, phase: str) -> None:
        """Tell what is being done for that lab."""

    @abstractmethod
    def idle(self) -> None:
        """Tell that nothing is waited for any more."""

    @contextmanager
    def starting(self, lab: str) -> Iterator[None]:
        """Meanwhile a lab is waited for."""
        self.start(lab)
        try:
            yield
        finally:
            self.idle()


class RelayedProgress(Progress):
    """That of a worker of pytest-xdist, which the controller shows.

    Args:
        send: sends a call to the controller, made of what execnet can carry; may raise OSError once nobody listens.
    """

    def __init__(self, send: Callable[[tuple[str, Any]], object]) -> None:
        self._send = send

    def note(self, text: str) -> None:
        self._relay("note", text)

    def queued(self, status: SessionStatusResponseDto) -> None:
        self._relay("queued", status.model_dump(mode="json"))

    def start(self, lab: str) -> None:
        self._relay("start", lab)

    def phase(self, phase: str) -> None:
        self._relay("phase", phase)

    def idle(self) -> None:
        self._relay("idle", None)

    def _relay(self, name: str, argument: Any) -> None:
        with suppress(OSError):
            self._send((name, argument))


class ShownProgress(Progress):
    """That of a process, shown on a board beside that of the others.

    Args:
        board: where it is shown.
        source: names the process.
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
            told = ("queue", status.position)
            self._board.wait(self._source, told, lambda since: sentence(status, since), began=self._queued_at)

    def start(self, lab: str) -> None:
        self._lab, self._starts = lab, self._starts + 1
        self._board.wait(self._source, None, lambda _: f"{lab}: waiting for the lab", short=SHORT)

    def phase(self, phase: str) -> None:
        lab = self._lab
        self._board.wait(self._source, (lab, self._starts, phase), lambda _: f"{lab}: {phase}", short=SHORT)

    def idle(self) -> None:
        self._board.end(self._source)

    def take(self, call: tuple[str, Any]) -> None:
        """Do what a `RelayedProgress` was told."""
        match call:
            case "queued", status:
                self.queued(SessionStatusResponseDto.model_validate(status))
            case "idle", _:
                self.idle()
            case ("note" | "start" | "phase") as name, argument:
                getattr(self, name)(argument)


@dataclass(frozen=True)
class Wait:
    """Something that takes its time.

    Attributes:
        began: when, on the board's clock.
        changed: when it was last another one.
        told: a log gets a line at once when this differs from what it was told last; None for no line.
        describe: the text, by the seconds since it changed.
        short: seconds for which a terminal shows nothing.
    """

    began: float
    changed: float
    told: object
    describe: Callable[[float], str]
    short: float


class Board:
    """Shows what the processes of a run wait for on one screen, the newest of it: a line that changes each second on a
    terminal; in a log a line for each change and each minute.

    Args:
        screen: the terminal.
        now: seconds on a clock that only goes forward.

    Attributes:
        screen: as given.
        now: as given.
    """

    def __init__(self, screen: Screen, now: Callable[[], float] = time.monotonic) -> None:
        self.screen = screen
        self.now = now
        self._waits: dict[str, Wait] = {}
        self._told: object = None
        self._told_at = 0.0
        self._notes: dict[str, str] = {}
        self._ticker: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False

    def note(self, source: str, text: str) -> None:
        """Write a line, unless another process has written the same: all of them share one session."""
        known = text.partition("; giving up in")[0]
        with self.screen.lock:
            if self._notes.setdefault(known, source) == source and not self._closed:
                self.screen.write_line(f"remote lab: {text}")

    def wait(
        self,
        source: str,
        told: object,
        describe: Callable[[float], str],
        *,
        began: float | None = None,
        short: float = 0,
    ) -> None:
        """Show that a process waits, or what has changed about it. See `Wait`."""
        with self.screen.lock:
            if self._closed:
                return
            now, known = self.now(), self._waits.pop(source, None)
            if not self._waits and known is None:
                self._told_at = now
            began = began or (known.began if known else now)
            self._waits[source] = Wait(began, now, told, describe, short)
            self.show()
            if self._ticker is None:
                self._ticker = threading.Thread(target=self._tick, name="remote-lab-progress", daemon=True)
                with suppress(RuntimeError):  # at the end of the interpreter no thread can be started
                    self._ticker.start()

    def end(self, source: str) -> None:
        """Show that a process waits no longer."""
        with self.screen.lock:
            self._waits.pop(source, None)
            if not self._waits:
                self.screen.clear()
                self._wake.set()

    def close(self) -> None:
        """Show nothing more."""
        with self.screen.lock:
            self._closed = True
            for source in list(self._waits):
                self.end(source)

    def show(self) -> None:
        """Show the newest wait, as far as it is time for it."""
        with self.screen.lock:
            if not self._waits:
                return
            wait, now = list(self._waits.values())[-1], self.now()
            took, text = now - wait.began, wait.describe(now - wait.changed)
            if self.screen.is_interactive:
                if took >= wait.short:
                    self.screen.show(f"remote lab [{duration(took)}]: {text}")
            elif wait.told is not None and wait.told != self._told:
                self.screen.write_line(f"remote lab: {text}")
                self._told, self._told_at = wait.told, now
            elif now - self._told_at >= REPEAT_AFTER:
                self.screen.write_line(f"remote lab [{duration(took)}]: {text}")
                self._told_at = now

    def _tick(self) -> None:
        while True:
            self._wake.wait(TICK)
            with self.screen.lock:
                self._wake.clear()
                if not self._waits:
                    self._ticker = None
                    return
                self.show()
