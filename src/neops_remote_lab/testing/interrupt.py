"""Ends the pytest run when the server ends its session, and the session when a signal ends the run."""

import _thread
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import pytest

from neops_remote_lab.client.exceptions import SessionEnded
from neops_remote_lab.testing import xdist

SESSION_ENDED = 75
"""Exit status of a run whose session was ended by the server: EX_TEMPFAIL of sysexits.h, "try again later"."""
_END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def leave_run(session: pytest.Session, reason: str, status: int = SESSION_ENDED) -> NoReturn:
    """End the pytest run with a message."""
    __tracebackhide__ = True
    line = f"remote lab: {reason}"
    xdist.report_end(session.config, line, status)
    pytest.exit(line, returncode=status)


@contextmanager
def ended_by_signals(end: Callable[[], object], concerned: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP end the session at once, and then the run with its teardown.

    Signals that have another handler, or are ignored, are not changed.

    Args:
        end: ends the session; called in a separate thread, because the main thread may be blocked in a call.
        concerned: whether there is a session; if not, the signal has its default effect.
    """

    def on_signal(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        if not concerned():
            os.kill(os.getpid(), number)
            return
        threading.Thread(target=end, name="remote-lab-end").start()
        pytest.exit(f"{signal.Signals(number).name} received", returncode=128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in _END_SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in _END_SIGNALS:
            if signal.getsignal(number) is on_signal:
                signal.signal(number, signal.SIG_DFL)


class LostSession:
    """Notifies the main thread, even in a blocking call, when the heartbeat thread finds that the session was ended."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._reason: str | None = None
        self._watching = False
        self._expected = False

    def expect(self) -> None:
        """Ignore the end of the session from now on, because this process ends it."""
        self._expected = True

    def stop_run(self, reason: str) -> None:
        """End the run, from any thread."""
        if self._expected:
            return
        self._reason = str(SessionEnded(reason))
        # A fallback if the test swallows the exception, or pytest does not run in the main thread.
        self._session.shouldstop = f"remote lab: {self._reason}"
        if not self._watching:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A context in which the main thread is interrupted when the session is lost. Ctrl-C works as usual."""
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
