"""What a board shows while processes wait, with a clock that only the test advances."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from neops_remote_lab.client.progress import REPEAT_AFTER, SHORT, Board, ShownProgress
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.models.session import SessionStatusResponseDto
from neops_remote_lab.testing.progress import RelayedProgress, repeat


class RecordingScreen:
    """A screen that records what is written to it."""

    def __init__(self, *, is_interactive: bool) -> None:
        self.is_interactive = is_interactive
        self.lock = threading.RLock()
        self.lines: list[str] = []
        self.shown: str | None = None

    def write_line(self, text: str) -> None:
        self.shown = None
        self.lines.append(text)

    def show(self, text: str) -> None:
        self.shown = text

    def clear(self) -> None:
        self.shown = None


class Run:
    """A board, its screen and its clock."""

    def __init__(self, *, is_interactive: bool = False) -> None:
        self.screen = RecordingScreen(is_interactive=is_interactive)
        self.seconds = 1000.0
        self.board = Board(self.screen, lambda: self.seconds)

    def progress(self, source: str = "") -> ShownProgress:
        return ShownProgress(self.board, source)

    def shown(self) -> str | None:
        return self.screen.shown

    def advance(self, seconds: float) -> None:
        """Advance the clock, and let the board show the new time."""
        self.seconds += seconds
        self.board.show()


@pytest.fixture
def log() -> Run:
    return Run()


@pytest.fixture
def terminal() -> Run:
    return Run(is_interactive=True)


def status(position: int, eta: float | None = None) -> SessionStatusResponseDto:
    state = SessionState.WAITING if position else SessionState.ACTIVE
    return SessionStatusResponseDto(status=state, position=position, eta_seconds=eta, waiting_for="ann holds it")


def test_a_log_gets_a_line_for_each_position_and_each_minute(log: Run) -> None:
    progress = log.progress()
    progress.queued(status(2, 600))
    for _ in range(int(REPEAT_AFTER) * 2 + 1):
        log.advance(1)
    progress.queued(status(2, 470))
    progress.queued(status(1, 300))
    progress.queued(status(0))
    log.advance(1000)
    assert log.screen.lines == [
        "remote lab: position 2 in the queue, about 10 min, ann holds it",
        "remote lab [60 s]: position 2 in the queue, about 9 min, ann holds it",
        "remote lab [2 min]: position 2 in the queue, about 8 min, ann holds it",
        "remote lab: position 1 in the queue, about 5 min, ann holds it",
    ]


def test_a_wait_that_is_shown_again_continues(log: Run) -> None:
    progress = log.progress()
    progress.queued(status(1))
    progress.idle()
    log.advance(40)
    progress.queued(status(1))
    log.advance(60)
    assert log.screen.lines == [
        "remote lab: position 1 in the queue, ann holds it",
        "remote lab [2 min]: position 1 in the queue, ann holds it",
    ]


def test_a_log_gets_the_phases_of_each_start_once(log: Run) -> None:
    progress = log.progress()
    for _ in range(2):
        with progress.starting("ring"):
            for _ in range(3):
                progress.phase("starting clab nodes")
    assert log.screen.lines == ["remote lab: ring: starting clab nodes"] * 2


def test_a_start_without_phases_is_shown_after_a_minute(log: Run) -> None:
    with log.progress().starting("ring"):
        log.advance(59)
        assert log.screen.lines == []
        log.advance(1)
    assert log.screen.lines == ["remote lab [60 s]: ring: waiting for the lab"]


def test_a_terminal_shows_the_seconds_that_pass(terminal: Run) -> None:
    progress = terminal.progress()
    progress.queued(status(1, 100))
    assert terminal.shown() == "remote lab [0 s]: position 1 in the queue, about 2 min, ann holds it"
    terminal.advance(30)
    assert terminal.shown() == "remote lab [30 s]: position 1 in the queue, about 70 s, ann holds it"
    progress.idle()
    terminal.advance(1)
    assert terminal.shown() is None
    assert terminal.screen.lines == []


def test_a_terminal_does_not_flicker_for_a_short_start(terminal: Run) -> None:
    with terminal.progress().starting("ring"):
        terminal.advance(SHORT / 2)
        assert terminal.shown() is None
        terminal.advance(SHORT)
        assert terminal.shown() == "remote lab [2 s]: ring: waiting for the lab"


def test_workers_that_share_a_session_show_messages_once(log: Run) -> None:
    first, second = log.progress("gw0"), log.progress("gw1")
    for progress in (first, second):
        progress.note("joining the queue of http://lab")
        progress.queued(status(1))
        progress.note("no answer from http://lab: refused; giving up in 100 s")
    first.note("no answer from http://lab: refused; giving up in 70 s")
    assert log.screen.lines == [
        "remote lab: joining the queue of http://lab",
        "remote lab: position 1 in the queue, ann holds it",
        "remote lab: no answer from http://lab: refused; giving up in 100 s",
        "remote lab: no answer from http://lab: refused; giving up in 70 s",
    ]


def test_messages_of_a_worker_are_shown(log: Run) -> None:
    sent: list[tuple[str, Any]] = []
    worker, shown = RelayedProgress(sent.append), log.progress("gw0")
    worker.note("a note")
    worker.queued(status(1, 30))
    with worker.starting("ring"):
        worker.phase("starting clab nodes")
    for call in sent:
        repeat(call, shown)
    assert log.screen.lines == [
        "remote lab: a note",
        "remote lab: position 1 in the queue, about 30 s, ann holds it",
        "remote lab: ring: starting clab nodes",
    ]


def test_messages_of_a_worker_without_a_controller_are_dropped() -> None:
    def fail(_: object) -> None:
        raise OSError

    RelayedProgress(fail).note("a note")


def test_a_closed_board_shows_nothing(terminal: Run) -> None:
    progress = terminal.progress()
    progress.queued(status(1))
    terminal.board.close()
    progress.queued(status(1))
    progress.note("too late")
    assert terminal.shown() is None
    assert terminal.screen.lines == []
