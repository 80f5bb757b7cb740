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

    def eta(self, position: int, held_for: Iterable[float], slots: int = 1) -> float | None:
        """Estimated seconds until a position becomes active, assuming average holds; None without history.

        Args:
            held_for: seconds for which each active session has been active.
            slots: number of sessions that can be active at once.
        """
        if not self._holds:
            return None
        if not position:
            return 0.0
        mean = fmean(self._holds)
        left = sorted(max(0.0, mean - seconds) for seconds in held_for)
        free_in = [0.0] * (slots - len(left)) + left
        # Slots become free in turns, because none stays occupied for more than one mean.
        turns, turn = divmod(position - 1, len(free_in))
        return free_in[turn] + turns * mean
