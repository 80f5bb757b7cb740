"""Notifies the user when the server cannot be reached."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

NOTICE_AFTER: Final = 1.0
"""Seconds before the first notice: a restart of the server takes less."""
REMINDER_INTERVAL: Final = 30.0
"""Seconds between two notices of the same problem."""


class Notices:
    """Reports connection problems of all threads, at a limited rate and one message at a time.

    Args:
        tell: called with each message.
        now: returns the time in seconds.
    """

    def __init__(self, tell: Callable[[str], object], now: Callable[[], float]) -> None:
        self._tell = tell
        self._now = now
        self._told_at: float | None = None
        self._lock = threading.Lock()

    def trouble(self, sentence: str, since: float | None, end: float) -> None:
        """Report a problem that persists, and the time until retries end.

        Args:
            sentence: what the problem is.
            since: when the problem began.
            end: when retries end.
        """
        now = self._now()
        with self._lock:
            recently = self._told_at is not None and now - self._told_at < REMINDER_INTERVAL
            if recently or since is None or now - since < NOTICE_AFTER or end <= now:
                return
            self._told_at = now
            self._tell(f"{sentence}; giving up in {end - now:.0f} s")

    def over(self, server: object) -> None:
        """Report that the server answers again, if a problem was reported."""
        with self._lock:
            if self._told_at is not None:
                self._told_at = None
                self._tell(f"{server} answers again")

    @contextlib.contextmanager
    def when_late(self, server: object, seconds: float | None, end: float) -> Iterator[None]:
        """Report a problem as soon as the body of the context takes longer than `seconds`."""
        if seconds is None:
            yield
            return
        timer = threading.Timer(seconds, self.trouble, (f"no answer from {server} yet", self._now(), end))
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # threads cannot be started at interpreter exit
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:  # wait for a running report, because pytest's terminal is not thread-safe
                pass
