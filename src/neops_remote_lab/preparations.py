"""Topologies that are checked, and made ready, while their sessions wait."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.models import TopologyCheckDto
from neops_remote_lab.netlab import workspace
from neops_remote_lab.netlab.commands import NetlabCommands, Prepared, failure
from neops_remote_lab.netlab.connector import Interrupt
from neops_remote_lab.netlab.workspace import Identity, Workspace
from neops_remote_lab.settings import Settings
from neops_remote_lab.uploads import RunBlocking, Upload

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Preparation:
    """One topology of one session: its check, and the folder that it left ready."""

    workspace: Workspace
    outcome: asyncio.Future[TopologyCheckDto]
    interrupt: Interrupt = field(default_factory=Interrupt)
    begun: bool = False
    taken: bool = False


class Preparations:
    """At most one check runs at a time; what it made is kept until its session takes it or ends."""

    def __init__(
        self,
        netlab: NetlabCommands,
        settings: Settings,
        *,
        run_blocking: RunBlocking,
        is_live: Callable[[str], bool],
    ) -> None:
        self._netlab = netlab
        self._settings = settings
        self._run_blocking = run_blocking
        self._is_live = is_live
        self._turn = asyncio.Lock()
        self._prepared: dict[str, dict[Identity, Preparation]] = {}

    async def check(self, session_id: str, upload: Upload) -> TopologyCheckDto:
        """Let netlab make the configuration files of a topology, and keep them for the session's acquire.

        Raises:
            HTTPException: 422 netlab rejects the topology, 404 the session has ended meanwhile.
        """
        made = upload.workspace
        known = self._prepared.setdefault(session_id, {})
        if (earlier := known.get(made.identity)) is not None:
            await self._run_blocking(workspace.remove, made.base)
            return await asyncio.shield(earlier.outcome)
        preparation = Preparation(made, asyncio.get_running_loop().create_future())
        known[made.identity] = preparation
        preparation.outcome.add_done_callback(lambda outcome: outcome.cancelled() or outcome.exception())
        task = asyncio.create_task(self._check(session_id, preparation))
        return await asyncio.shield(_outcome_of(task, preparation))

    async def _check(self, session_id: str, preparation: Preparation) -> None:
        made, outcome = preparation.workspace, preparation.outcome
        try:
            async with self._turn:
                if not self._is_live(session_id) or preparation.interrupt.requested:
                    raise InterruptedError  # noqa: TRY301 - as if it had been stopped a moment later
                preparation.begun = True
                found: Prepared = await self._run_blocking(self._netlab.create, made, preparation.interrupt)
        except ValueError as error:
            detail = f"netlab rejects the topology: {error}"
            outcome.set_exception(HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail))
        except InterruptedError:
            detail = "the check was stopped: its session has ended, or starts the lab itself"
            outcome.set_exception(HTTPException(status.HTTP_404_NOT_FOUND, detail=detail))
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            logger.warning("checking a topology failed: %s", failure(error))
            detail = f"netlab could not check the topology: {failure(error)}"
            outcome.set_exception(HTTPException(status.HTTP_500_INTERNAL_SERVER_ERROR, detail=detail))
        else:
            outcome.set_result(TopologyCheckDto(nodes=len(found.devices), links=found.links))
        if outcome.exception() or self._has_enough(session_id) or not self._is_live(session_id):
            await self._run_blocking(workspace.remove, made.base)

    def _has_enough(self, session_id: str) -> bool:
        kept = [other for other in self._prepared.get(session_id, {}).values() if other.workspace.snapshot.exists()]
        return len(kept) > self._settings.max_prepared

    async def take(self, session_id: str, identity: Identity) -> Workspace | None:
        """The prepared folder of a topology, which is the caller's from now on; None where there is none.

        A check of it that runs is waited for; one that has not begun is given up, for others may come before it.
        """
        preparation = self._prepared.get(session_id, {}).get(identity)
        if preparation is None or preparation.taken:
            return None
        if not preparation.outcome.done() and not preparation.begun:
            preparation.interrupt.request()
            return None
        await asyncio.wait([preparation.outcome])
        if preparation.taken or preparation.outcome.exception() or not preparation.workspace.snapshot.exists():
            return None
        preparation.taken = True
        return preparation.workspace

    async def settle(self) -> None:
        """Remove what was prepared for sessions that have ended. To be called whenever that may be the case."""
        for session_id in [known for known in self._prepared if not self._is_live(known)]:
            for preparation in self._prepared.pop(session_id).values():
                preparation.interrupt.request()
                if preparation.outcome.done() and not preparation.taken:
                    await self._run_blocking(workspace.remove, preparation.workspace.base)

    async def close(self) -> None:
        """Stop the check that runs, and remove everything that is prepared."""
        everything = [one for known in self._prepared.values() for one in known.values()]
        self._prepared.clear()
        for preparation in everything:
            preparation.interrupt.request()
        for preparation in everything:
            await asyncio.wait([preparation.outcome])
            if not preparation.taken:
                await self._run_blocking(workspace.remove, preparation.workspace.base)


async def _outcome_of(task: asyncio.Task[None], preparation: Preparation) -> TopologyCheckDto:
    await task
    return preparation.outcome.result()
