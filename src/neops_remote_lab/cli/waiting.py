"""Shows the user what a session waits for."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from neops_remote_lab.cli.command import PROGRAM
from neops_remote_lab.client.waiting import sentence
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.session import SessionStatusResponseDto

REPEAT_AFTER: Final = 60.0
"""Seconds after which an unchanged line is repeated in a log."""
_CLEAR_LINE: Final = "\r\x1b[K"


class WaitingLine:
    """Shows the position in the queue: on a terminal as one line that is rewritten, in a log as a line per change and
    per minute.

    Args:
        stream: the terminal or log.
        now: returns monotonic seconds.
    """

    def __init__(self, stream: TextIO = sys.stderr, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._is_terminal = stream.isatty()
        self._told: tuple[int, str | None] | None = None
        self._told_at = 0.0

    def show(self, status: SessionStatusResponseDto) -> None:
        """Tell where in the queue the session is."""
        if status.status == SessionState.ACTIVE:
            self.end()
            return
        what = (status.position, status.waiting_for)
        if not self._is_terminal and what == self._told and self._now() - self._told_at < REPEAT_AFTER:
            return
        self._told, self._told_at = what, self._now()
        line = f"{PROGRAM}: {sentence(status)}"
        if self._is_terminal:
            line = _CLEAR_LINE + one_line(line, shutil.get_terminal_size().columns - 1)  # a wrapped line stays
        self._stream.write(line if self._is_terminal else f"{line}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line to what comes next."""
        if self._told is not None and self._is_terminal:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
        self._told = None
