"""How long the next sessions will wait, by how long the latest ones held the lab."""

from collections import deque
from collections.abc import Iterable
from statistics import fmean


class HoldHistory:
    """How long the latest sessions held the lab, for the guess how long the next ones will wait."""

    def __init__(self, holds: Iterable[float] = (), *, size: int = 20) -> None:
        """`holds` in seconds, oldest first; the latest `size` count."""
        self._holds = deque(holds, maxlen=size)

    def add(self, seconds: float) -> None:
        """Note one more hold."""
        self._holds.append(seconds)

    def eta(self, position: int, held_for: float) -> float | None:
        """Seconds until a position becomes active, when all hold as long as the latest did; None without history."""
        if not self._holds:
            return None
        mean = fmean(self._holds)
        return max(0.0, mean - held_for) + (position - 1) * mean if position else 0.0
