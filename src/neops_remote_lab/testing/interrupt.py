"""Ends the pytest run when the server has ended its session."""

import _thread
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import pytest

from neops_remote_lab.testing import xdist

SESSION_ENDED = 75
"""Exit status of a run whose session was ended by the server: EX_TEMPFAIL of sysexits.h, "try again later"."""


def leave_run(session: pytest.Session, reason: str, status: int = SESSION_ENDED) -> NoReturn:
    """End the pytest run with one line that says why."""
    __tracebackhide__ = True
    line = f"remote lab: {reason}"
    xdist.say_farewell(session.config, line, status)
    pytest.exit(line, returncode=status)


class LostSession:
    """Carries the news from the heartbeat thread to the main thread, whatever call that one may be blocked in."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._reason: str | None = None
        self._watching = False

    def stop_run(self, reason: str) -> None:
        """End the run, from any thread."""
        self._reason = f"the session was ended by the server: {reason}"
        # in case the test swallows the exception, or the main thread is not pytest's
        self._session.shouldstop = f"remote lab: {self._reason}"
        if not self._watching:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen for the news; a Ctrl-C of the user does what it always did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual = signal.getsignal(signal.SIGINT)

        def on_interrupt(number: int, frame: FrameType | None) -> None:
            if self._reason is not None:
                reason, self._reason = self._reason, None
                leave_run(self._session, reason)
            if callable(usual):
                usual(number, frame)
            elif usual is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        signal.signal(signal.SIGINT, on_interrupt)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.signal(signal.SIGINT, usual)
