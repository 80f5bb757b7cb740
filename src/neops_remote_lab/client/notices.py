"""Tells a person that the server cannot be reached."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

NOTICE_AFTER: Final = 1.0
"""Seconds of trouble that nobody is told of: a restart of the server."""
REMINDER_INTERVAL: Final = 30.0
"""Seconds from one notice of the same trouble to the next."""


class Notices:
    """Tells of trouble soon, not too often, and one sentence at a time whichever thread notices it.

    Args:
        tell: called with each sentence.
        now: the time, in seconds.
    """

    def __init__(self, tell: Callable[[str], object], now: Callable[[], float]) -> None:
        self._tell = tell
        self._now = now
        self._told_at: float | None = None
        self._lock = threading.Lock()

    def trouble(self, sentence: str, since: float | None, end: float) -> None:
        """Tell of trouble that goes on, and when it is going to be given up."""
        now = self._now()
        with self._lock:
            recently = self._told_at is not None and now - self._told_at < REMINDER_INTERVAL
            if recently or since is None or now - since < NOTICE_AFTER or end <= now:
                return
            self._told_at = now
            self._tell(f"{sentence}; giving up in {end - now:.0f} s")

    def over(self, server: object) -> None:
        """Tell that the server has answered, where somebody knows of the trouble."""
        with self._lock:
            if self._told_at is not None:
                self._told_at = None
                self._tell(f"{server} answers again")

    @contextlib.contextmanager
    def when_late(self, server: object, seconds: float | None, end: float) -> Iterator[None]:
        """Tell as soon as the body has taken so many seconds."""
        if seconds is None:
            yield
            return
        timer = threading.Timer(seconds, self.trouble, (f"no answer from {server} yet", self._now(), end))
        timer.daemon = True
        with contextlib.suppress(RuntimeError):  # at the end of the interpreter no thread can be started
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:  # what is being told is told to the end: pytest's terminal is not for two threads
                pass
