"""The terminal of a run, for what the plugin tells between the lines that pytest itself writes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import pytest

from neops_remote_lab.core.text import fit, printable_lines
from neops_remote_lab.testing import xdist

CALM: Final = 2.0
"""Seconds after the last line of pytest until the changing line is shown below it."""


class Screen:
    """Pytest's terminal, also while pytest captures what tests print. Threads may share it.

    On a terminal for people it has one line that changes: it is rewritten in place, and gone before anything else is
    written. In a log, and where a CI system shows the terminal as a log, there are lines alone.

    Attributes:
        lock: held while something is written; whoever shows something may hold it for longer.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = ""
        self._descriptor: int | None = None
        self._encoding = "utf-8"
        self._calm_at = 0.0
        self.lock = threading.RLock()

    @property
    def is_interactive(self) -> bool:
        """Whether there is a line that may change."""
        reporter = self._reporter()
        in_ci = os.environ.get("CI") or os.environ.get("BUILD_NUMBER")  # as pytest tells it
        return reporter is not None and bool(reporter.isatty) and not in_ci and os.environ.get("TERM") != "dumb"

    def write_line(self, text: str) -> None:
        """Write lines that stay."""
        text = printable_lines(text)
        with self.lock:
            self.clear()
            reporter = self._reporter()
            with self._uncaptured():
                if reporter is None:
                    sys.stderr.write(f"{text}\n")
                    sys.stderr.flush()
                else:
                    self._begin_line(reporter)
                    reporter.write_line(text)
                    reporter.flush()

    def show(self, text: str) -> None:
        """Have the changing line say something, provided that pytest has written nothing for a while."""
        with self.lock:
            if time.monotonic() < self._calm_at:
                return
            if self._descriptor is None:
                self._descriptor = self._open()
            text = fit(text, os.get_terminal_size(self._descriptor).columns - 1)
            if text != self._shown:
                self._shown = text
                self._write(f"\r{text}\x1b[K")  # what is left of a longer text is erased last, so nothing flickers

    def clear(self) -> None:
        """Remove the changing line."""
        with self.lock:
            if self._descriptor is not None:
                self._write("\r\x1b[K")
                os.close(self._descriptor)
                self._descriptor, self._shown = None, ""

    @contextmanager
    def left_to_pytest(self) -> Iterator[None]:
        """Keep everybody else from writing while the body does."""
        with self.lock:
            self.clear()
            try:
                yield
            finally:
                self._calm_at = time.monotonic() + CALM

    def _reporter(self) -> Any:
        """Pytest's reporter, unless it has no terminal: that of a worker of pytest-xdist."""
        return None if xdist.is_worker(self._config) else self._config.pluginmanager.get_plugin("terminalreporter")

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return capture.global_and_fixture_disabled() if capture else nullcontext()  # `-p no:capture` takes it away

    def _begin_line(self, reporter: Any) -> None:
        reporter.ensure_newline()
        writer = self._config.get_terminal_writer()
        if writer.width_of_current_line:  # the reporter does not know of a line of dots by pytest-xdist
            writer.line()

    def _open(self) -> int:
        """The terminal itself, to be written to while pytest redirects the standard output."""
        with self._uncaptured():
            reporter = self._reporter()
            self._begin_line(reporter)
            reporter.flush()
            self._encoding = sys.stdout.encoding or "utf-8"
            return os.dup(sys.stdout.fileno())

    def _write(self, text: str) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, text.encode(self._encoding, "replace"))
