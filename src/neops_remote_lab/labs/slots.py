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
    """One coordinator per slot, and what concerns all labs of the host.

    A host that starts labs in advance has one more coordinator than slots. A session uses the coordinator that has its
    lab, whatever the number of its slot.
    """

    def __init__(
        self,
        create: Callable[[int], LabCoordinator],
        queue: SessionQueue,
        host_labs: HostLabs,
        run_blocking: RunBlocking,
        *,
        spare: int = 0,
    ) -> None:
        """Create the coordinators.

        Args:
            create: creates the coordinator with a number.
            spare: number of coordinators besides those of the slots.
        """
        self._create = create
        self._queue = queue
        self._host_labs = host_labs
        self._run_blocking = run_blocking
        self._coordinators = {number: create(number) for number in range(FIRST_SLOT, FIRST_SLOT + queue.slots + spare)}
        self._used: dict[str, int] = {}
        """The coordinator of each active session that has used one, by session id."""
        self._epoch: int | None = None

    def __iter__(self) -> Iterator[LabCoordinator]:
        return iter(self._coordinators.values())

    def of(self, session_id: str) -> LabCoordinator:
        """The coordinator of a session. For a session that is not active, it is one without a lab of it."""
        number = self._with_lab(session_id)
        if self._queue.is_active(session_id):
            number = number or self._used.get(session_id) or self._free(self._queue.slot_of(session_id))
            if number and self._used.get(session_id) != number:
                others = {other: used for other, used in self._used.items() if used != number}
                self._used = others | {session_id: number}
        return self._coordinators[number or FIRST_SLOT]

    def has_lab(self, session_id: str) -> bool:
        """Whether a session has a lab on this host."""
        return self._with_lab(session_id) is not None

    def _with_lab(self, session_id: str) -> int | None:
        return next((number for number, each in self._coordinators.items() if each.session_id == session_id), None)

    def _free(self, preferred: int | None) -> int | None:
        """A coordinator that no session of this host uses, and that keeps no lab for a session."""
        taken = self._in_use | {number for number, each in self._coordinators.items() if each.in_session}
        free = self._coordinators.keys() - taken
        return preferred if preferred in free else min(free, default=None)

    @property
    def _in_use(self) -> set[int]:
        """The coordinators that active sessions have used."""
        return {number for session_id, number in self._used.items() if self._queue.is_active(session_id)}

    @property
    def spare(self) -> LabCoordinator | None:
        """An idle coordinator besides those that the active sessions may need; None if there is none."""
        in_use = self._in_use
        reserved = max(0, self._queue.slots - len(in_use))
        idle = [number for number, each in self._coordinators.items() if each.is_idle and number not in in_use]
        return self._coordinators[idle[-1]] if len(idle) > reserved else None

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
        self._used = {
            session_id: number for session_id, number in self._used.items() if self._queue.is_active(session_id)
        }
        for each in self:
            await each.reconcile()

    async def end_lost(self) -> None:
        """End labs that other servers have declared lost, if this host has been registered anew."""
        own = self._queue.hosts.own
        if own is None or own.epoch == self._epoch:
            return
        for each in self:
            await each.end_if_lost()
        self._epoch = own.epoch

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
