"""A program on a terminal, and the contents of its screen."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pyte

from tests.fakes import wait_until

LINES = 200
CTRL_C = b"\x03"


class Terminal:
    """A process whose standard streams are a terminal of its own.

    Args:
        command: the program and its arguments.
        directory: where it runs.
        environment: variables to add to those of this process, or to remove if the value is None.
        columns: width of the terminal.

    Attributes:
        process: the process.
        written: its output so far.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str | None] | None = None,
        columns: int = 120,
    ) -> None:
        self.written = b""
        self._screen = pyte.Screen(columns, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._controller, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
        wanted = {**os.environ, "TERM": "xterm", "CI": None, "BUILD_NUMBER": None, **(environment or {})}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=directory,
            env={name: value for name, value in wanted.items() if value is not None},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._controller, 65536)
            except OSError:  # the last process has left the terminal
                return
            with self._lock:
                self.written += data
                self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        """The lines on the screen, without empty ones."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display if line.strip()]

    def with_text(self, text: str) -> list[str]:
        """The lines on the screen that have a text."""
        return [line for line in self.lines if text in line]

    def wait_for(self, text: str, timeout: float = 60) -> str:
        """Wait until a text is on the screen. Returns the first line that contains it."""
        return self.wait_for_lines(text, timeout)[0]

    def wait_for_lines(self, text: str, timeout: float = 60) -> list[str]:
        """Wait until a text is on the screen. Returns the lines that contained it then, because a line may change."""
        found: list[str] = []

        def shown() -> bool:
            found[:] = self.with_text(text)
            return bool(found)

        wait_until(shown, timeout, f"{text!r} is not shown")
        return found

    def press(self, keys: bytes) -> None:
        """Send keys to the process."""
        os.write(self._controller, keys)

    def finish(self, timeout: float = 60) -> int:
        """Wait for the end of the process. Returns its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        os.close(self._controller)
