"""The one source of time: wall time for people and rows, monotonic time for durations."""

import time
from datetime import UTC, datetime


class Clock:
    """The clocks of the operating system. Tests pass a subclass."""

    def now(self) -> datetime:
        """Wall time in UTC, for display and storage. Never subtract two of them: wall time can jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds on a clock that never goes backwards; only differences have a meaning."""
        return time.monotonic()
