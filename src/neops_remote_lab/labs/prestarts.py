"""Starts the lab of the next session in advance, so that it is running when the session becomes active."""

import asyncio
import logging
from typing import Final

from neops_remote_lab.core.identity import Identity
from neops_remote_lab.labs.admission import Admission
from neops_remote_lab.labs.coordinator import LabCoordinator
from neops_remote_lab.labs.slots import Slots
from neops_remote_lab.labs.topology_checks import TopologyChecks
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.protocol import DatabaseError

logger = logging.getLogger(__name__)

POLL: Final = 0.2
"""Seconds between two looks at the head of the queue."""


class Prestarts:
    """Keeps at most one lab that belongs to a waiting session: the one at the head of the queue."""

    def __init__(self, slots: Slots, checks: TopologyChecks, queue: SessionQueue, admission: Admission) -> None:
        self._slots = slots
        self._checks = checks
        self._queue = queue
        self._admission = admission
        self._tried: tuple[str, Identity] | None = None

    async def run(self) -> None:
        """Start labs in advance, until the task is cancelled."""
        await self._slots.opened()
        while True:
            await asyncio.sleep(POLL)
            try:
                await self._step()
            except DatabaseError as error:
                logger.warning("no lab starts in advance: %s", error)
            except Exception:
                logger.exception("no lab starts in advance")

    async def _step(self) -> None:
        waiting, own = [each for each in self._slots if self._is_in_advance(each)], self._queue.hosts.own
        if waiting and (self._admission.memory_is_short or (own and own.is_draining)):
            await waiting[0].reclaim()
        session_id = self._queue.next_waiting
        if waiting or session_id is None or self._queue.draining or own is None or not own.serves:
            return
        identity = self._checks.first_prepared(session_id)
        if identity is None or self._tried == (session_id, identity) or self._admission.waiting:
            return
        if (spare := self._slots.spare) and (workspace := await self._checks.take(session_id, identity)):
            self._tried = session_id, identity  # once, because a lab that failed or was reclaimed would be so again
            logger.info("session %.8s waits: its lab starts in advance", session_id)
            await spare.start_in_advance(session_id, workspace)

    def _is_in_advance(self, each: LabCoordinator) -> bool:
        session_id = each.session_id
        return session_id is not None and self._queue.is_waiting(session_id)
