"""Shows on standard error what a command is waiting for."""

import os
import sys
import threading

from neops_remote_lab.cli.command import PROGRAM
from neops_remote_lab.client.progress import Board, ShownProgress, can_rewrite_lines
from neops_remote_lab.core.text import fit, printable_lines


class StandardError:
    """Standard error of this process, a `Screen`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._has_status = False

    @property
    def is_interactive(self) -> bool:
        """Whether standard error is a terminal that can show a status line."""
        return sys.stderr.isatty() and can_rewrite_lines()

    def write_line(self, text: str) -> None:
        """Write permanent lines, with control characters escaped."""
        with self.lock:
            self.clear()
            self._write(f"{printable_lines(text)}\n")

    def show(self, text: str) -> None:
        """Show a text in the status line."""
        with self.lock:
            self._has_status = True
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            self._write(f"\r{fit(text, columns - 1)}\x1b[K")  # in the last column, some terminals wrap the line

    def clear(self) -> None:
        """Remove the status line."""
        with self.lock:
            if self._has_status:
                self._has_status = False
                self._write("\r\x1b[K")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def progress_on_standard_error() -> ShownProgress:
    """The progress of a command."""
    return ShownProgress(Board(StandardError(), name=PROGRAM))
