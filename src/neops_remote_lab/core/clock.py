"""The one source of time: wall time for people and rows, monotonic time for durations."""

import time
from datetime import UTC, datetime


class Clock:
    """Time as the operating system tells it. Tests pass a subclass of their own."""

    def now(self) -> datetime:
        """Wall time in UTC. Shown and stored, never subtracted: it may jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds on a clock that only goes forward; only differences mean anything."""
        return time.monotonic()
