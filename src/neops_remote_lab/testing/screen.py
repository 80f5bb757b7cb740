"""Writes the plugin's messages to the terminal, between the lines that pytest writes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import pytest

from neops_remote_lab.client.progress import can_rewrite_lines
from neops_remote_lab.core.text import fit, printable_lines
from neops_remote_lab.testing import xdist

QUIET_PERIOD: Final = 2.0
"""Seconds after pytest's last output until the status line is shown."""


class PytestScreen:
    """Pytest's terminal, a `Screen`. It can be written to while pytest captures the output of tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._shown = ""
        self._descriptor: int | None = None
        self._encoding = "utf-8"
        self._quiet_at = 0.0
        self.lock = threading.RLock()

    @property
    def is_interactive(self) -> bool:
        """Whether the terminal can show a status line."""
        reporter = self._reporter()
        return reporter is not None and bool(reporter.isatty) and can_rewrite_lines()

    def write_line(self, text: str) -> None:
        """Write permanent lines."""
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
        """Show a text in the status line, unless pytest has written something recently."""
        with self.lock:
            if time.monotonic() < self._quiet_at:
                return
            if self._descriptor is None:
                self._descriptor = self._open()
            text = fit(text, os.get_terminal_size(self._descriptor).columns - 1)
            if text != self._shown:
                self._shown = text
                self._write(f"\r{text}\x1b[K")  # erases the rest of a longer text last, so that nothing flickers

    def clear(self) -> None:
        """Remove the status line."""
        with self.lock:
            if self._descriptor is not None:
                self._write("\r\x1b[K")
                os.close(self._descriptor)
                self._descriptor, self._shown = None, ""

    @contextmanager
    def reserved_for_pytest(self) -> Iterator[None]:
        """A context in which other threads cannot write."""
        with self.lock:
            self.clear()
            try:
                yield
            finally:
                self._quiet_at = time.monotonic() + QUIET_PERIOD

    def _reporter(self) -> Any:
        """Pytest's reporter; None in a worker of pytest-xdist, whose reporter has no terminal."""
        return None if xdist.is_worker(self._config) else self._config.pluginmanager.get_plugin("terminalreporter")

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        return capture.global_and_fixture_disabled() if capture else nullcontext()  # None with `-p no:capture`

    def _begin_line(self, reporter: Any) -> None:
        reporter.ensure_newline()
        writer = self._config.get_terminal_writer()
        if writer.width_of_current_line:  # the reporter does not notice the dots that pytest-xdist writes
            writer.line()

    def _open(self) -> int:
        """Open the terminal, so that it can be written to while pytest redirects standard output."""
        with self._uncaptured():
            reporter = self._reporter()
            self._begin_line(reporter)
            reporter.flush()
            self._encoding = sys.stdout.encoding or "utf-8"
            return os.dup(sys.stdout.fileno())

    def _write(self, text: str) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, text.encode(self._encoding, "replace"))
