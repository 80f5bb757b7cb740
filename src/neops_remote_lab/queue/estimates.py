"""Estimates how long sessions will wait, from how long recent sessions were active."""

from collections import deque
from collections.abc import Iterable
from statistics import fmean


class HoldHistory:
    """How long the latest sessions were active, to estimate the wait of the next ones."""

    def __init__(self, holds: Iterable[float] = (), *, size: int = 20) -> None:
        """`holds` are in seconds, oldest first. Only the latest `size` are kept."""
        self._holds = deque(holds, maxlen=size)

    def add(self, seconds: float) -> None:
        """Add the latest hold, in seconds."""
        self._holds.append(seconds)

    def eta(self, position: int, held_for: float) -> float | None:
        """Estimated seconds until a position becomes active, assuming average holds; None without history.

        Args:
            held_for: seconds for which the active session has been active.
        """
        if not self._holds:
            return None
        mean = fmean(self._holds)
        return max(0.0, mean - held_for) + (position - 1) * mean if position else 0.0
