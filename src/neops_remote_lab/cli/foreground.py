"""Runs the user's command in the foreground, and passes on the terminal, signals and the exit status."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

from neops_remote_lab.cli.command import ExitStatus, refuse
from neops_remote_lab.client import programs

PASSED_ON: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
FROM_THE_KEYBOARD: Final = (signal.SIGINT, signal.SIGQUIT)
FINAL: Final = (signal.SIGHUP, signal.SIGTERM)
"""Signals with which CI systems cancel a job, before they kill it some seconds later."""
CANCEL_AFTER: Final = 2.0
"""Seconds from such a signal to the call of `on_cancel`, while the command is still running."""
KILL_AFTER: Final = 10.0
"""Seconds from such a signal until the command is killed."""


class Foreground:
    """One command in the foreground of the terminal.

    Args:
        arguments: the program and its arguments.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._on_cancel: Callable[[], object] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._timers: list[threading.Timer] = []
        self._is_ended = False

    def run(
        self,
        environment: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        on_cancel: Callable[[], object] | None = None,
    ) -> int:
        """Run the command to its end. Returns its exit status, or 128 plus the number of the signal that ended it.

        Args:
            environment: variables in addition to those of this process.
            defaults: variables that this process's variables override.
            on_cancel: called in a separate thread if the command is still running `CANCEL_AFTER` seconds after a signal
                in `FINAL`.

        Raises:
            OSError: the command cannot be started.
        """
        self._on_cancel = on_cancel
        with self._signals_passed_on():
            self._process = programs.start(self._arguments, environment, defaults)
            if self._is_ended:
                self.end()
            status = self._process.wait()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        return status if status >= 0 else ExitStatus.SIGNAL - status

    def end(self) -> None:
        """End the command, from any thread. A command that has not been started yet is ended when it is."""
        self._is_ended = True
        if self._process is not None:
            self._process.terminate()
            self._start_timer(KILL_AFTER, self._process.kill)

    @contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        with ExitStack() as stack:
            for number in PASSED_ON:
                before = signal.signal(number, self._pass_on)
                stack.callback(signal.signal, number, before)
            yield

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        if self._process is None:
            self._is_ended = True
        elif number in FROM_THE_KEYBOARD and _is_in_front():
            pass  # the terminal sends it to the command too
        else:
            self._process.send_signal(number)
        if number in FINAL and not self._timers:
            if self._on_cancel is not None:
                self._start_timer(CANCEL_AFTER, self._on_cancel)
            if self._process is not None:
                self._start_timer(KILL_AFTER, self._process.kill)

    def _start_timer(self, seconds: float, action: Callable[[], object]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


def require_program(name: str) -> None:
    """Exit with the status that a shell uses if a command does not exist or is not executable."""
    if shutil.which(name) is not None:
        return
    if os.sep in name and os.path.exists(name):  # noqa: PTH110 - a name of a program, not a path of ours
        refuse(f"{name} cannot be executed", ExitStatus.NOT_EXECUTABLE)
    refuse(f"there is no program {name}", ExitStatus.NOT_FOUND)


def _is_in_front() -> bool:
    """Whether this process is in the foreground of its terminal, which then also signals the command on Ctrl-C."""
    try:
        terminal = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
