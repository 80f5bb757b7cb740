"""The quarantine of the host because of leftovers, which every slot of the host can report."""

import math

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import QuarantineSource
from neops_remote_lab.queue.service import SessionQueue


class HostQuarantine:
    """Quarantines the host while leftovers of any slot exist."""

    def __init__(self, queue: SessionQueue) -> None:
        self._queue = queue
        self._unswept: set[int] = set()
        self._leftovers: dict[int, str] = {}

    @property
    def is_on(self) -> bool:
        """Whether the host is quarantined, by whomever."""
        return self._queue.quarantined is not None

    def expect(self, slot: int) -> None:
        """Keep a quarantine that an earlier server set until this slot reports leftovers or has none."""
        self._unswept.add(slot)

    async def report(self, slot: int, what: str) -> None:
        """Quarantine the host, because something of a lab of this slot could not be removed."""
        self._unswept.discard(slot)
        self._leftovers[slot] = what
        await self._apply()

    async def clear(self, slot: int) -> None:
        """Lift the quarantine, unless another slot has leftovers or an operator set it."""
        self._unswept.discard(slot)
        self._leftovers.pop(slot, None)
        if not self._unswept and self._queue.quarantined_by is QuarantineSource.SERVER:
            await self._apply()

    async def _apply(self) -> None:
        what = ", ".join(self._leftovers.values())
        await self._queue.quarantine(f"left behind: {what} could not be removed" if what else None)


class Leftovers:
    """The leftovers of labs of one slot."""

    def __init__(self, quarantine: HostQuarantine, slot: int, clock: Clock) -> None:
        self._quarantine = quarantine
        self._slot = slot
        self._clock = clock
        self._since: float | None = None

    @property
    def exist(self) -> bool:
        """Whether something could not be removed, so that no lab can start."""
        return self._since is not None

    @property
    def age(self) -> float | None:
        """Seconds since their removal failed, None if there are none. Infinite if an operator lifted the quarantine."""
        if self._since is None:
            return None
        return self._clock.monotonic() - self._since if self._quarantine.is_on else math.inf

    def expect(self) -> None:
        """Keep a quarantine that an earlier server set, until it is known whether there are any."""
        self._quarantine.expect(self._slot)

    def forget(self) -> None:
        """Forget them, because an operation determines anew what is left."""
        self._since = None

    async def report(self, what: str) -> None:
        """Quarantine the host because of them."""
        self._since = self._clock.monotonic()
        await self._quarantine.report(self._slot, what)

    async def clear(self) -> None:
        """Lift a quarantine that this server set, because there are none any more."""
        self._since = self._clock.monotonic()  # so that a failure of the database is retried
        await self._quarantine.clear(self._slot)
        self._since = None
