"""Topologies that are checked, and made ready, while their sessions wait."""

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.core.settings import Settings
from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Upload, answer_to
from neops_remote_lab.models import TopologyCheckDto
from neops_remote_lab.netlab import workspace
from neops_remote_lab.netlab.commands import NetlabCommands, Prepared
from neops_remote_lab.netlab.workspace import Identity, Workspace

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TopologyCheck:
    """One topology of one session: its check, and the directory that it left ready."""

    workspace: Workspace
    outcome: asyncio.Future[TopologyCheckDto]
    interrupt: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    taken: bool = False


class TopologyChecks:
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
        self._prepared: dict[str, dict[Identity, TopologyCheck]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def check(self, session_id: str, upload: Upload) -> TopologyCheckDto:
        """Let netlab make the configuration files of a topology, and keep them for the session's acquire.

        Raises:
            HTTPException: 422 netlab rejects the topology, 404 the session has ended, 409 its turn has come, 503 the
                server is about to end.
        """
        made = upload.workspace
        known = self._prepared.setdefault(session_id, {})
        if (earlier := known.get(made.identity)) is not None:
            await self._run_blocking(workspace.remove, made.base)
            return await asyncio.shield(earlier.outcome)
        preparation = TopologyCheck(made, asyncio.get_running_loop().create_future())
        known[made.identity] = preparation
        preparation.outcome.add_done_callback(_retrieve)
        task = asyncio.create_task(self._check(session_id, preparation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(preparation.outcome)

    async def _check(self, session_id: str, preparation: TopologyCheck) -> None:
        made, outcome = preparation.workspace, preparation.outcome
        try:
            async with self._turn:
                found = await self._create(session_id, preparation)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            answer = self._answer(error)
            if answer.status_code != status.HTTP_422_UNPROCESSABLE_CONTENT:
                self._forget(session_id, preparation)
            await self._run_blocking(workspace.remove, made.base)
            if not outcome.done():
                outcome.set_exception(answer)
            return
        if self._has_enough(session_id) or not self._is_live(session_id):
            await self._run_blocking(workspace.remove, made.base)
        outcome.set_result(TopologyCheckDto(nodes=len(found.devices), links=found.links))

    def _answer(self, error: Exception) -> HTTPException:
        if isinstance(error, InterruptedError) and self._draining:
            detail = "the check was stopped, because the server is about to end: try again when it is back"
            headers = {"Retry-After": str(self._settings.retry_after)}
            return HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail=detail, headers=headers)
        if isinstance(error, InterruptedError):
            detail = "the check was stopped, because its session has ended"
            return HTTPException(status.HTTP_404_NOT_FOUND, detail=detail)
        answer = answer_to(error, "netlab could not check the topology")
        if answer.status_code != status.HTTP_422_UNPROCESSABLE_CONTENT:
            logger.warning("checking a topology failed: %s", one_line(str(answer.detail)))
        return answer

    def _forget(self, session_id: str, preparation: TopologyCheck) -> None:
        """Let the next call check again: only netlab's word on the topology holds for good."""
        known = self._prepared.get(session_id, {})
        if known.get(preparation.workspace.identity) is preparation:
            del known[preparation.workspace.identity]

    async def _create(self, session_id: str, preparation: TopologyCheck) -> Prepared:
        if not self._is_live(session_id) or preparation.interrupt.is_set():
            raise InterruptedError
        preparation.begun = True
        found: Prepared = await self._run_blocking(self._netlab.create, preparation.workspace, preparation.interrupt)
        return found

    def _has_enough(self, session_id: str) -> bool:
        kept = [other for other in self._prepared.get(session_id, {}).values() if other.workspace.snapshot.exists()]
        return len(kept) > self._settings.max_prepared

    def give_up(self, session_id: str) -> None:
        """Give up what a session has asked for and what has not begun."""
        for preparation in self._prepared.get(session_id, {}).values():
            if not preparation.begun and not preparation.outcome.done():
                preparation.interrupt.set()
                detail = "the session is active now: POST /lab checks the topology too"
                preparation.outcome.set_exception(HTTPException(status.HTTP_409_CONFLICT, detail=detail))

    async def take(self, session_id: str, identity: Identity) -> Workspace | None:
        """The prepared directory of a topology, which is the caller's from now on; None where there is none.

        A check of it that runs is waited for; one that has not begun is given up, for others may come before it.
        """
        preparation = self._prepared.get(session_id, {}).get(identity)
        if preparation is None or preparation.taken:
            return None
        self.give_up(session_id)
        await asyncio.wait([preparation.outcome])
        if preparation.taken or preparation.outcome.exception() or not preparation.workspace.snapshot.exists():
            return None
        preparation.taken = True
        return preparation.workspace

    async def settle(self) -> None:
        """Remove what was prepared for sessions that have ended. To be called whenever that may be the case."""
        for session_id in [known for known in self._prepared if not self._is_live(known)]:
            for preparation in self._prepared.pop(session_id).values():
                self._stop(preparation)
                if preparation.outcome.done() and not preparation.taken:
                    await self._run_blocking(workspace.remove, preparation.workspace.base)

    def drain(self) -> None:
        """Stop the check that runs and those that wait for it, because the server is about to end. Never blocks."""
        self._draining = True
        for preparation in self._all():
            self._stop(preparation)

    def _stop(self, preparation: TopologyCheck) -> None:
        preparation.interrupt.set()
        if not preparation.begun and not preparation.outcome.done():  # else its answer comes when netlab has ended
            preparation.outcome.set_exception(self._answer(InterruptedError()))

    def _all(self) -> list[TopologyCheck]:
        return [one for known in self._prepared.values() for one in known.values()]

    async def close(self) -> None:
        """Stop the check that runs, and remove everything that is prepared."""
        self.drain()
        everything = self._all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for preparation in everything:
            if not preparation.taken:
                await self._run_blocking(workspace.remove, preparation.workspace.base)


def _retrieve(outcome: asyncio.Future[TopologyCheckDto]) -> None:
    """Mark a failure as seen, since nobody may wait for it any more."""
    if not outcome.cancelled():
        outcome.exception()
