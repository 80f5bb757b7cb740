"""Checks topologies of waiting sessions, and keeps the generated files for their later start."""

import asyncio
import logging
import threading
from dataclasses import dataclass, field

from neops_remote_lab.core.identity import Identity
from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Upload, discard
from neops_remote_lab.labs.admission import Admission
from neops_remote_lab.labs.refusals import Reason, Refused, refusal_of
from neops_remote_lab.labs.settings import LabSettings
from neops_remote_lab.models import TopologyCheckDto
from neops_remote_lab.netlab.commands import NetlabCommands, Prepared
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.queue.service import SessionQueue

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class TopologyCheck:
    """The check of one topology of one session, and the workspace that it prepares."""

    workspace: Workspace
    outcome: asyncio.Future[TopologyCheckDto]
    interrupt: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    taken: bool = False


class TopologyChecks:
    """Runs one check at a time. A prepared workspace is kept until its session takes it or ends."""

    def __init__(
        self,
        netlab: NetlabCommands,
        settings: LabSettings,
        *,
        admission: Admission,
        queue: SessionQueue,
        run_blocking: RunBlocking,
    ) -> None:
        self._netlab = netlab
        self._settings = settings
        self._admission = admission
        self._run_blocking = run_blocking
        self._queue = queue
        self._turn = asyncio.Lock()
        self._checks: dict[str, dict[Identity, TopologyCheck]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def check(self, session_id: str, upload: Upload) -> TopologyCheckDto:
        """Generate the configuration files of a topology with netlab, and keep them for the session's acquire.

        Raises:
            Refused: netlab rejects the topology or fails, the session has ended or is active now, or the server is
                shutting down.
        """
        workspace = upload.workspace
        known = self._checks.setdefault(session_id, {})
        if (earlier := known.get(workspace.identity)) is not None:
            await discard(workspace, self._run_blocking)
            return await asyncio.shield(earlier.outcome)
        check = TopologyCheck(workspace, asyncio.get_running_loop().create_future())
        known[workspace.identity] = check
        check.outcome.add_done_callback(_retrieve)
        task = asyncio.create_task(self._check(session_id, check))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(check.outcome)

    async def _check(self, session_id: str, check: TopologyCheck) -> None:
        workspace, outcome = check.workspace, check.outcome
        try:
            async with self._turn:
                found = await self._create(session_id, check)
        except Exception as error:  # noqa: BLE001 - every error must reach the waiting requests
            refused = self._refusal(error)
            if refused.reason is not Reason.REJECTED:
                self._forget(session_id, check)
            await discard(workspace, self._run_blocking)
            if not outcome.done():
                outcome.set_exception(refused)
            return
        if self._has_enough(session_id) or not self._is_live(session_id):
            await discard(workspace, self._run_blocking)
        outcome.set_result(TopologyCheckDto(nodes=len(found.devices), links=found.links))

    def _refusal(self, error: Exception) -> Refused:
        if isinstance(error, InterruptedError) and self._draining:
            detail = "the check was stopped, because the server is shutting down: try again when it is back"
            return Refused(Reason.SERVER_ENDS, detail)
        if isinstance(error, InterruptedError):
            return Refused(Reason.SESSION_ENDED, "the check was stopped, because its session has ended")
        refused = refusal_of(error, "netlab could not check the topology")
        if refused.reason not in {Reason.REJECTED, Reason.TOO_LARGE}:
            logger.warning("checking a topology failed: %s", one_line(str(refused)))
        return refused

    def _forget(self, session_id: str, check: TopologyCheck) -> None:
        """Remove a failed check, so that the next call checks again. Only a rejection by netlab is final."""
        known = self._checks.get(session_id, {})
        if known.get(check.workspace.identity) is check:
            del known[check.workspace.identity]

    async def _create(self, session_id: str, check: TopologyCheck) -> Prepared:
        if not self._is_live(session_id) or check.interrupt.is_set():
            raise InterruptedError
        check.begun = True
        found: Prepared = await self._run_blocking(self._netlab.create, check.workspace, check.interrupt)
        await self._admission.require_possible(check.workspace.identity, found.devices)
        return found

    def _is_live(self, session_id: str) -> bool:
        return self._queue.place(session_id) is not None

    def _has_enough(self, session_id: str) -> bool:
        kept = [other for other in self._checks.get(session_id, {}).values() if other.workspace.snapshot.exists()]
        return len(kept) > self._settings.max_prepared

    def give_up(self, session_id: str) -> None:
        """Cancel the checks of a session that have not begun."""
        for check in self._checks.get(session_id, {}).values():
            if not check.begun and not check.outcome.done():
                check.interrupt.set()
                detail = "the session is active now: POST /lab checks the topology too"
                check.outcome.set_exception(Refused(Reason.TURN_HAS_COME, detail))

    def first_prepared(self, session_id: str) -> Identity | None:
        """The topology that a session sent first for checking, if it is prepared for a start; otherwise None."""
        check = next(iter(self._checks.get(session_id, {}).values()), None)
        if check is None or check.taken or not check.outcome.done() or check.outcome.exception():
            return None
        return check.workspace.identity if check.workspace.snapshot.exists() else None

    async def take(self, session_id: str, identity: Identity) -> Workspace | None:
        """Hand the prepared workspace of a topology over to the caller; None if there is none.

        This waits for a running check of the topology. A check that has not begun is cancelled, because checks of other
        sessions may be ahead of it.
        """
        check = self._checks.get(session_id, {}).get(identity)
        if check is None or check.taken:
            return None
        self.give_up(session_id)
        await asyncio.wait([check.outcome])
        if check.taken or check.outcome.exception() or not check.workspace.snapshot.exists():
            return None
        check.taken = True
        return check.workspace

    async def reconcile(self) -> None:
        """Stop the checks and remove the workspaces of sessions that have ended."""
        for session_id in [known for known in self._checks if not self._is_live(known)]:
            for check in self._checks.pop(session_id, {}).values():  # another call may do the same meanwhile
                self._stop(check)
                if check.outcome.done() and not check.taken:
                    await discard(check.workspace, self._run_blocking)

    def drain(self) -> None:
        """Stop the running check and those that wait for it, because the server is shutting down. Never blocks."""
        self._draining = True
        for check in self._all():
            self._stop(check)

    def _stop(self, check: TopologyCheck) -> None:
        check.interrupt.set()
        if not check.begun and not check.outcome.done():  # otherwise it fails when netlab has ended
            check.outcome.set_exception(self._refusal(InterruptedError()))

    def _all(self) -> list[TopologyCheck]:
        return [one for known in self._checks.values() for one in known.values()]

    async def close(self) -> None:
        """Stop the running check and remove all prepared workspaces."""
        self.drain()
        everything = self._all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for check in everything:
            if not check.taken:
                await discard(check.workspace, self._run_blocking)


def _retrieve(outcome: asyncio.Future[TopologyCheckDto]) -> None:
    """Mark an exception as retrieved, because no request may be waiting for it."""
    if not outcome.cancelled():
        outcome.exception()
