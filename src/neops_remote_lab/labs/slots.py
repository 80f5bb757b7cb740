"""The slots of this host: each can run the lab of one session."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.coordinator import LabCoordinator
from neops_remote_lab.netlab.host_labs import HostLabs
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.rows import FIRST_SLOT, Lab


class Slots:
    """One coordinator per slot, and what concerns all labs of the host."""

    def __init__(
        self,
        create: Callable[[int], LabCoordinator],
        queue: SessionQueue,
        host_labs: HostLabs,
        run_blocking: RunBlocking,
    ) -> None:
        """Create the slots that the queue uses.

        Args:
            create: creates the coordinator of a slot.
        """
        self._create = create
        self._queue = queue
        self._host_labs = host_labs
        self._run_blocking = run_blocking
        self._coordinators = {slot: create(slot) for slot in range(FIRST_SLOT, FIRST_SLOT + queue.slots)}

    def __iter__(self) -> Iterator[LabCoordinator]:
        return iter(self._coordinators.values())

    def of(self, session_id: str) -> LabCoordinator:
        """The coordinator of a session's slot. For a session that is not active, it is one without a lab of it."""
        slot = self._queue.slot_of(session_id) or FIRST_SLOT
        return self._coordinators.get(slot, self._coordinators[FIRST_SLOT])

    @property
    def labs(self) -> list[Lab]:
        """The live labs, by slot."""
        return [each.lab for each in self if each.lab]

    @property
    def references(self) -> int:
        """The number of acquires of all labs that are not yet released."""
        return sum(each.references for each in self)

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host for any session, for example a lab that is not ours. Blocks."""
        return self._coordinators[FIRST_SLOT].in_the_way()

    async def open(self, *, rebooted: bool) -> None:
        """Begin to adopt or remove the labs of an earlier server. Calls on the lab wait for the end of that.

        Args:
            rebooted: the host was restarted since, so no lab can be running.
        """
        for slot in await self._queue.occupied_slots():
            if slot not in self._coordinators:  # the earlier server had more slots: its sessions keep theirs
                self._coordinators[slot] = self._create(slot)
        for each in self:
            await each.load(rebooted=rebooted)
        first, *others = self
        in_use = {Path(each.lab.work_dir) for each in others if each.lab}
        directories = await self._run_blocking(self._host_labs.directories)
        adopted = asyncio.Barrier(len(self._coordinators))
        first.open(adopted, [directory for directory in directories if directory not in in_use])
        for each in others:
            each.open(adopted)

    async def opened(self) -> None:
        """Wait until the labs of an earlier server are adopted or removed."""
        for each in self:
            await each.opened()

    async def reconcile(self) -> None:
        """Carry out pending maintenance: end labs whose sessions have ended, and retry failed operations."""
        for each in self:
            await each.reconcile()

    def drain(self) -> None:
        """Interrupt everything that calls wait for, because the server is shutting down."""
        for each in self:
            each.drain()
        if not self.labs:  # else netlab is asked at the teardown
            self._host_labs.commands.cancel_queries()

    async def close(self, *, keep: bool) -> None:
        """End running operations, then tear the labs down or, with `keep`, leave them running for the next server."""
        await asyncio.gather(*(each.close(keep=keep) for each in self))

    async def prune(self, before: datetime) -> int:
        """Delete labs that ended before a time, and logs past their own retention. Returns the number of labs."""
        return await self._coordinators[FIRST_SLOT].prune(before)
