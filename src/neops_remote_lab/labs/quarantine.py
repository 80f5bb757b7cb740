"""The quarantine of the host because of leftovers, which every slot of the host can report."""

from neops_remote_lab.core.codes import QuarantineSource
from neops_remote_lab.queue.service import SessionQueue


class HostQuarantine:
    """Quarantines the host while leftovers of any slot exist."""

    def __init__(self, queue: SessionQueue) -> None:
        self._queue = queue
        self._unswept: set[int] = set()
        self._leftovers: dict[int, str] = {}

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
