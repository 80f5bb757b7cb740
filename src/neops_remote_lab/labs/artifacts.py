"""Artifact archives of labs on behalf of sessions, one at a time per session."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.refusals import Reason, Refused, refusal_of
from neops_remote_lab.models import DeviceInfoDto
from neops_remote_lab.netlab.artifacts import ArtifactCollector
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.store.rows import EndedLab

_FAILED: Final = "the artifacts could not be taken"
_STOPPED: Final = {
    Reason.NO_LAB: "the lab ended while its artifacts were taken",
    Reason.SERVER_ENDS: "the server is shutting down: try again when it is back",
}


@dataclass(eq=False)
class _Collection:
    """An archive that is being created."""

    task: asyncio.Future[IO[bytes]]
    interrupt: threading.Event = field(default_factory=threading.Event)
    stopped_for: Reason = Reason.NO_LAB


class Artifacts:
    """Creates archives of labs, and can stop those in progress."""

    def __init__(self, collector: ArtifactCollector, clock: Clock, run_blocking: RunBlocking) -> None:
        self._collector = collector
        self._clock = clock
        self._run_blocking = run_blocking
        self._collections: dict[str, _Collection] = {}

    async def take(self, session_id: str, workspace: Workspace, devices: Sequence[DeviceInfoDto]) -> IO[bytes]:
        """The archive of a session's running lab. The caller closes it. Cancelling the call stops the collection.

        Raises:
            Refused: a collection for this session is in progress, the lab ended meanwhile, or the host failed.
        """
        if session_id in self._collections:
            raise Refused(
                Reason.TAKEN_ALREADY, "the artifacts of this lab are being taken: wait for them, or try again"
            )
        interrupt, now = threading.Event(), self._clock.now()
        work = self._run_blocking(self._collector.of_lab, workspace, devices, now, interrupt)
        self._collections[session_id] = collection = _Collection(asyncio.ensure_future(work), interrupt)
        collection.task.add_done_callback(lambda _: self._collections.pop(session_id))
        try:
            return await asyncio.shield(collection.task)
        except asyncio.CancelledError:
            interrupt.set()
            collection.task.add_done_callback(_drop)
            raise
        except InterruptedError:
            raise Refused(collection.stopped_for, _STOPPED[collection.stopped_for]) from None
        except Exception as error:
            raise refusal_of(error, _FAILED) from error

    async def take_of_failed(self, ended: EndedLab, log: Path) -> IO[bytes]:
        """The archive of a lab that did not start. The caller closes it.

        Raises:
            Refused: the archive could not be created.
        """
        now = self._clock.now()
        try:
            archive: IO[bytes] = await self._run_blocking(
                self._collector.of_failed_lab, ended.lab_id, log, ended.detail, now
            )
        except OSError as error:
            raise refusal_of(error, _FAILED) from error
        return archive

    def interrupt(self, why: Reason) -> None:
        """Stop all collections: their `take` raises `Refused` with that reason. Never blocks."""
        for collection in self._collections.values():
            collection.stopped_for = why
            collection.interrupt.set()

    async def stop(self, session_id: str) -> None:
        """Stop the collection of a session's lab and wait for its end, before the lab is torn down."""
        if collection := self._collections.get(session_id):
            collection.interrupt.set()
            await asyncio.wait([collection.task])

    async def close(self) -> None:
        """Stop all collections and wait for their end."""
        self.interrupt(Reason.SERVER_ENDS)
        await asyncio.gather(*(collection.task for collection in self._collections.values()), return_exceptions=True)


def _drop(task: asyncio.Future[Any]) -> None:
    """Close the archive of a cancelled call."""
    if not task.cancelled() and not task.exception():
        task.result().close()
