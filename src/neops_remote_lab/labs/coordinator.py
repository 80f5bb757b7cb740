"""The lab's life on this host, as the server sees it: acquired, released, torn down, adopted, and written down.

Each change of the lab is an operation (`up` or `down`) that runs in the background, one at a time: first what is about
to happen is committed, then netlab runs in a thread, then the outcome is committed. Requests wait for operations; they
never run netlab themselves, so a client that goes away leaves nothing half done.
"""

import asyncio
import logging
import subprocess
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EXPECTED, LiveLabState, OutcomeCode, QuarantineSource
from neops_remote_lab.core.metrics import Metrics, Outcome
from neops_remote_lab.core.settings import Settings
from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import (
    ENDINGS,
    Acquire,
    Operation,
    Upload,
    answer_to,
    lab_in_the_way,
    outcome_of,
    stopped,
)
from neops_remote_lab.models import AcquireResponseDto, DeviceInfoDto, LabStatusDto
from neops_remote_lab.netlab import ownership, workspace
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.lab_manager import LabManager, Verdict
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.netlab.output import scrub
from neops_remote_lab.netlab.workspace import Identity, Workspace
from neops_remote_lab.store import Lab, LabStore

logger = logging.getLogger(__name__)

LOGGED_REASON = 500
"""Most characters of the reason for which a lab did not start, in the log; the answer has all of it."""


class LabCoordinator:
    """The one lab of this host, on behalf of the active session."""

    def __init__(
        self,
        store: LabStore,
        manager: LabManager,
        settings: Settings,
        clock: Clock,
        *,
        run_blocking: RunBlocking,
        is_active: Callable[[str], bool],
        quarantine: Callable[[str | None], Awaitable[None]],
        prepared: Callable[[str, Identity], Awaitable[Workspace | None]],
        metrics: Metrics,
    ) -> None:
        """Put the service together with what it asks and tells.

        Args:
            quarantine: is told why the host takes no labs any more, and None when it does again.
            prepared: gives the directory in which a session's topology was prepared, if there is one.
        """
        self._store = store
        self._manager = manager
        self._settings = settings
        self._clock = clock
        self._run_blocking = run_blocking
        self._is_active = is_active
        self._quarantine = quarantine
        self._prepared = prepared
        self._metrics = metrics
        self._failed_logs = FailedLogs(
            settings.work_dir, days=settings.failed_log_days, number=settings.max_failed_logs
        )
        self._lab: Lab | None = None
        self._operation: Operation | None = None
        self._decisions = asyncio.Lock()
        self._acquires: dict[tuple[str, str], Acquire] = {}
        self._stuck_since: float | None = None
        self._stopped_for = OutcomeCode.SESSION_ENDED
        self._recovered = asyncio.Event()
        self._left_directories: list[Path] = []
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def lab(self) -> Lab | None:
        """The live lab."""
        return self._lab

    @property
    def references(self) -> int:
        """Acquires that were not yet released."""
        return self._manager.status().ref_count

    def log(self, session_id: str) -> Path | None:
        """Where netlab's output of the session's lab is written."""
        lab = self._lab
        return Path(lab.work_dir) / workspace.LOG_NAME if lab and lab.session_id == session_id else None

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host, whoever asks: a lab of somebody else, for example. Blocks."""
        try:
            return self._manager.in_the_way()
        except FileNotFoundError:
            return None  # there is no netlab, which is told otherwise
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return f"it cannot be told whether a lab can start: {scrub(failure(error))}"

    async def failed_log(self, session_id: str) -> Path | None:
        """Where netlab's output of the session's latest lab is kept, if that lab did not start."""
        await self._recovered.wait()
        if self._lab and self._lab.session_id == session_id:
            return None
        if (ended := await self._store.last_ended(session_id)) is None or ended.code in EXPECTED:
            return None
        kept = self._failed_logs.path(ended.lab_id)
        return kept if await self._run_blocking(kept.exists) else None

    async def acquire(self, session_id: str, upload: Upload, key: str | None) -> AcquireResponseDto:
        """Get the lab for a session, and count one reference more.

        A cancelled caller no longer counts, but what it began goes on.

        Raises:
            HTTPException: 422 netlab rejects the topology, 423 the lab is busy, 500 netlab failed.
        """
        acquire = await self._begin_acquire(session_id, upload, key)
        acquire.present += 1
        try:
            return await asyncio.shield(_task(acquire))
        finally:
            acquire.present -= 1

    async def acquire_in_background(self, session_id: str, upload: Upload, key: str | None) -> None:
        """As `acquire`, but return once the start is written down; how it goes on is told by `status`."""
        acquire = await self._begin_acquire(session_id, upload, key)
        acquire.present += 1
        begun = asyncio.ensure_future(acquire.begun.wait())
        await asyncio.wait([begun, _task(acquire)], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if _task(acquire).done():
            _task(acquire).result()

    async def _begin_acquire(self, session_id: str, upload: Upload, key: str | None) -> Acquire:
        if key and (running := self._acquires.get((session_id, key))):
            await self._discard(upload)
            return running
        acquire = Acquire(session_id, upload, key)
        acquire.task = self._spawn(self._acquire(acquire))
        acquire.task.add_done_callback(_retrieve)
        if key:
            self._acquires[session_id, key] = acquire
            acquire.task.add_done_callback(lambda _: self._acquires.pop((session_id, key), None))
        return acquire

    async def _acquire(self, acquire: Acquire) -> AcquireResponseDto:
        try:
            await self._recovered.wait()
            if (answer := await self._answered_before(acquire)) is not None:
                return answer
            return await self._start_or_reuse(acquire)
        finally:
            if self._manager.current is None or self._manager.current.workspace is not acquire.upload.workspace:
                await self._discard(acquire.upload)

    async def _answered_before(self, acquire: Acquire) -> AcquireResponseDto | None:
        if acquire.key is None:
            return None
        known = await self._store.reference_by_key(acquire.session_id, acquire.key)
        if known is None:
            return None
        if not known.held and known.outcome is not None and known.outcome not in EXPECTED:
            return None  # the lab was lost, perhaps together with the answer: a repetition begins anew
        if known.held and self._lab and self._lab.lab_id == known.lab_id:
            return AcquireResponseDto(reused=True, devices=self._devices())
        detail = "the acquire with this Idempotency-Key has been released: send a new key for a new acquire"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)

    async def _start_or_reuse(self, acquire: Acquire) -> AcquireResponseDto:
        while True:
            async with self._decisions:
                self._require_active(acquire.session_id)
                if self._operation is None and self._may_reuse(acquire):
                    return await self._reuse(acquire)
                operation = self._operation or self._make_room(acquire)
                joined = self._joins(operation, acquire)
            await asyncio.wait([operation.task])
            error = operation.task.exception()
            # A start that failed has failed for all who waited for it; a trouble of the host's concerns everybody.
            if error and (joined or not isinstance(error, HTTPException)):
                raise error
            if operation.starts_for is acquire:
                return AcquireResponseDto(reused=False, devices=self._devices())

    def _may_reuse(self, acquire: Acquire) -> bool:
        own = self._lab is not None and self._lab.session_id == acquire.session_id
        return own and self._verdict(acquire) == "reuse"

    def _verdict(self, acquire: Acquire) -> Verdict:
        return self._manager.verdict(acquire.upload.workspace.identity, reuse=acquire.upload.reuse)

    def _make_room(self, acquire: Acquire) -> Operation:
        """Begin what an acquire needs first: the end of another lab, or the start of its own."""
        if self._lab and self._lab.session_id != acquire.session_id and self._stuck_since is None:
            return self._operate(self._take_down(OutcomeCode.SESSION_ENDED))
        if self._lab and self._manager.current is None:
            return self._operate(self._recover(rebooted=False))  # its end could not be written down
        verdict = self._verdict(acquire)
        if verdict == "start" and self._stuck_since is not None:
            raise self._busy()  # beside what could not be removed nothing may run
        if verdict == "start":
            return self._operate(self._bring_up(acquire), starts_for=acquire)
        if verdict == "replace":
            return self._operate(self._take_down(OutcomeCode.REPLACED))
        raise self._busy()

    def _joins(self, operation: Operation, acquire: Acquire) -> bool:
        """Whether a running operation starts the lab that an acquire wants; another of its session is in the way."""
        started = operation.starts_for
        if started is None or started.session_id != acquire.session_id:
            return False
        if started is not acquire and not started.present:
            return False  # its client has gone away: nobody is going to hold that lab
        same = started.upload.workspace.identity == acquire.upload.workspace.identity
        if started is not acquire and not (same and acquire.upload.reuse):
            raise self._busy()
        return True

    def _operate(self, work: Coroutine[Any, Any, None], *, starts_for: Acquire | None = None) -> Operation:
        self._operation = operation = Operation(self._spawn(work), starts_for)

        def finished(task: asyncio.Task[None]) -> None:
            self._operation = None
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, HTTPException):
                logger.error("an operation on the lab failed; it is tried again", exc_info=error)

        operation.task.add_done_callback(finished)
        return operation

    async def _reuse(self, acquire: Acquire) -> AcquireResponseDto:
        lab = self._live()
        unclaimed = self._manager.status().ref_count == 0
        if acquire.present:
            held = await self._store.add_reference(lab.lab_id, acquire.session_id, acquire.key, self._clock.now())
            self._manager.set_references(held)
            logger.info("session %.8s shares lab %s: %d references", acquire.session_id, lab.lab_id, held)
        return AcquireResponseDto(reused=acquire.upload.reuse or not unclaimed, devices=self._devices())

    async def _bring_up(self, acquire: Acquire) -> None:
        uploaded = acquire.upload.workspace
        made = await self._prepared(acquire.session_id, uploaded.identity) or uploaded
        self._lab = lab = _row(acquire.session_id, made)
        began = self._clock.monotonic()
        logger.info("session %.8s acquires %s: lab %s starts", lab.session_id, one_line(lab.topology), lab.lab_id)
        outcome: Outcome = "failed"
        try:
            await self._store.starting(lab, self._clock.now())
            acquire.begun.set()
            devices = await self._run_blocking(self._start, made, acquire.interrupt)
            raw = [device.model_dump() for device in devices]
            await self._store.running(lab.lab_id, raw, self._clock.now())
            if acquire.present:
                await self._store.add_reference(lab.lab_id, acquire.session_id, acquire.key, self._clock.now())
            else:
                self._manager.set_references(0)
            self._lab = replace(lab, state=LiveLabState.RUNNING, devices=raw)
            outcome = "up"
        except Exception as error:  # noqa: BLE001 - whatever it was, its lab must go and its waiters must hear of it
            outcome = outcome_of(error)
            await self._failed(lab, error)
        finally:
            seconds = self._clock.monotonic() - began
            self._metrics.lab_started(seconds, outcome)
            logger.info("lab %s of session %.8s: %s after %.1f s", lab.lab_id, lab.session_id, outcome, seconds)

    def _start(self, made: Workspace, interrupt: threading.Event) -> list[DeviceInfoDto]:
        self._failed_logs.keep(made.lab_id, made.log)
        devices = self._manager.try_acquire(made, interrupt=interrupt)
        self._failed_logs.forget(made.lab_id)
        if devices is None:
            raise BlockingIOError(self._manager.holder())
        return devices

    async def _failed(self, lab: Lab, error: Exception) -> NoReturn:
        """Write down how an `up` failed, and say so to whoever waits for it. The lab manager has cleaned up."""
        retry_after = self._settings.retry_after
        if isinstance(error, InterruptedError):
            code, answer = self._stopped_for, stopped(self._stopped_for, retry_after)
        elif isinstance(error, BlockingIOError):
            code, answer = OutcomeCode.IN_THE_WAY, lab_in_the_way(str(error), retry_after)
        else:
            code = OutcomeCode.REJECTED if isinstance(error, ValueError) else OutcomeCode.FAILED
            answer = answer_to(error)
        detail = ENDINGS.get(code, str(answer.detail))
        why = one_line(detail, LOGGED_REASON)
        logger.warning("lab %s of session %.8s did not start: %s", lab.lab_id, lab.session_id, why)
        await self._run_blocking(self._failed_logs.prune)
        if self._manager.current and not self._manager.current.left:
            await self._run_blocking(self._manager.tear_down)
        await self._run_blocking(self._manager.load_ahead)
        await self._conclude(lab.lab_id, code, detail)
        raise answer from error

    async def _take_down(self, code: OutcomeCode, detail: str | None = None) -> None:
        """End the lab; `detail` says how to people, where the code does not."""
        detail = detail or ENDINGS[code]
        lab = self._live()
        logger.info("lab %s of session %.8s: teardown begins: %s", lab.lab_id, lab.session_id, detail)
        self._lab = replace(lab, state=LiveLabState.STOPPING)  # first: another release must not begin a second teardown
        await self._store.stopping(lab.lab_id)
        await self._run_blocking(self._manager.load_ahead)  # netlab is loaded for the next lab while this one ends
        began = self._clock.monotonic()
        await self._run_blocking(self._manager.tear_down)
        seconds = self._clock.monotonic() - began
        self._metrics.lab_torn_down(seconds)
        await self._conclude(lab.lab_id, code, detail)
        if self._stuck_since is None:
            logger.info("lab %s of session %.8s is gone: teardown took %.1f s", lab.lab_id, lab.session_id, seconds)
            await self._sweep()

    async def open(self, *, rebooted: bool, quarantined_by: QuarantineSource | None) -> None:
        """Take over what an earlier server has left, in the background; calls on the lab wait for the end of that."""
        self._lab = await self._store.live_lab()
        # Listed before any upload can arrive: those must not be taken for something left behind.
        self._left_directories = await self._run_blocking(ownership.directories, self._settings.work_dir)
        opening = self._operate(self._open(rebooted=rebooted, quarantined_by=quarantined_by))
        # After the operation has been struck off: whoever waited would take it for one that is in the way.
        opening.task.add_done_callback(lambda _: self._recovered.set())

    async def opened(self) -> None:
        """Return when what an earlier server has left is adopted or removed, and the next lab is prepared for."""
        await self._recovered.wait()

    async def _open(self, *, rebooted: bool, quarantined_by: QuarantineSource | None) -> None:
        await self._run_blocking(self._manager.load_ahead)
        await self._recover(rebooted=rebooted)
        await self._sweep()
        if self._stuck_since is None and quarantined_by is QuarantineSource.SERVER:
            await self._quarantine(None)

    async def _recover(self, *, rebooted: bool) -> None:
        if (lab := self._lab) is not None:
            await self._take_over(lab, rebooted=rebooted)

    async def _take_over(self, lab: Lab, *, rebooted: bool) -> None:
        """Go on with the lab that the database names, or remove what is left of it."""
        devices = [DeviceInfoDto.model_validate(device) for device in lab.devices or []]
        held = await self._store.held_references(lab.lab_id)
        await self._run_blocking(self._manager.hold, _workspace(lab), devices, held)
        may_run = lab.state == "running" and self._is_active(lab.session_id) and not rebooted
        if may_run and await self._run_blocking(self._manager.resume):
            logger.info("lab %s runs on, with %d references", lab.lab_id, held)
            return
        lost = "the lab host was restarted" if rebooted else "the server was restarted, and the lab did not run whole"
        await self._run_blocking(self._manager.tear_down)
        if self._is_active(lab.session_id):
            await self._conclude(lab.lab_id, OutcomeCode.LOST, f"lost: {lost}")
        else:
            await self._conclude(lab.lab_id, OutcomeCode.SESSION_ENDED, ENDINGS[OutcomeCode.SESSION_ENDED])

    async def _sweep(self) -> None:
        if left := await self._run_blocking(self._manager.sweep, self._left_directories):
            await self._stuck(f"{', '.join(left)} of an earlier lab")
        else:
            self._left_directories = []

    async def _stuck(self, what: str) -> None:
        self._stuck_since = self._clock.monotonic()
        await self._quarantine(f"left behind: {what} could not be removed")

    async def _conclude(self, lab_id: str, code: OutcomeCode, detail: str) -> None:
        held = self._manager.current
        if held and held.workspace.lab_id == lab_id:
            await self._stuck(f"{', '.join(held.left)} of lab {lab_id}")
            return
        await self._store.ended(lab_id, code, detail, self._clock.now())
        self._lab = None

    async def _clean_up(self) -> None:
        """Try once more to remove what has put the host into quarantine, and end that when nothing is left."""
        self._stuck_since = None
        if self._lab:
            await self._take_down(OutcomeCode.LOST, "lost: it could be removed only later")
        else:
            await self._sweep()
        if self._stuck_since is None:
            await self._quarantine(None)

    async def release(self, session_id: str, key: str | None = None) -> None:
        """Let go of one reference (that of the acquire with `key`, where given); the last one tears the lab down.

        Raises:
            HTTPException: 404 no lab is running.
        """
        await self._recovered.wait()
        async with self._decisions:
            known = await self._store.reference_by_key(session_id, key) if key else None
            if known and not known.held:
                return  # a repeated release: the first one was answered, or would have been
            if key and not known:
                raise HTTPException(status.HTTP_404_NOT_FOUND, detail="no acquire had this Idempotency-Key")
            lab = await self._running(session_id)
            left = await self._store.release_reference(lab.lab_id, key, self._clock.now())
            self._manager.set_references(left)
            logger.info("session %.8s released lab %s: %d references are left", session_id, lab.lab_id, left)
            if not left:
                self._operate(self._take_down(OutcomeCode.RELEASED))

    async def destroy(self, session_id: str, *, force: bool) -> bool:
        """Tear the lab down in the background; False where there is none.

        Raises:
            HTTPException: 409 it is in use and `force` is false.
        """
        await self._recovered.wait()
        async with self._decisions:
            if self._lab is None or self._lab.session_id != session_id:
                return False
            starting = self._operation is not None and self._operation.starts_for is not None
            if self._operation and not starting:
                return False
            if not force and (starting or self._manager.status().ref_count):
                detail = "the lab is in use: release its references first, or send force=true"
                raise HTTPException(status.HTTP_409_CONFLICT, detail=detail)
            if starting:
                self.stop_starting(OutcomeCode.DESTROYED)
            else:
                self._operate(self._take_down(OutcomeCode.DESTROYED))
            return True

    async def settle(self) -> None:
        """Tear down a lab whose session is over. To be called whenever that may be the case."""
        async with self._decisions:
            if self._lab is None or self._is_active(self._lab.session_id):
                return
            if self._operation is None and self._stuck_since is None:
                self._operate(self._take_down(OutcomeCode.SESSION_ENDED))
            else:
                self.stop_starting(OutcomeCode.SESSION_ENDED)

    def stop_starting(self, code: OutcomeCode) -> None:
        """End a start that runs, if there is one: it fails, and cleans up after itself."""
        if self._operation and self._operation.starts_for:
            self._stopped_for = code
            self._operation.starts_for.interrupt.set()

    def drain(self) -> None:
        """End what calls wait for, because the server is about to end."""
        self.stop_starting(OutcomeCode.SERVER_ENDED)
        if self._lab is None:  # else netlab is asked at the teardown
            self._manager.stop_asking()

    async def tick(self, *, quarantined: bool) -> None:
        """Do what is due: end a lab without a session, and try again what has failed."""
        if self._operation:
            await self.settle()
        elif self._stuck_since is not None:
            waited = self._clock.monotonic() - self._stuck_since
            if not quarantined or waited >= self._settings.quarantine_retry:
                self._operate(self._clean_up())
        elif self._lab and self._manager.current is None:
            self._operate(self._recover(rebooted=False))  # its end could not be written down
        elif self._lab and self._lab.state == "stopping":
            self._operate(self._take_down(OutcomeCode.RELEASED))  # it could not be written down that it began
        else:
            await self.settle()

    async def status(self, session_id: str) -> LabStatusDto:
        """The session's lab, and why it has none if that was not its wish."""
        await self._recovered.wait()
        if self._lab is None or self._lab.session_id != session_id:
            return LabStatusDto(running=False, error=await self._unexpected_end(session_id))
        found = self._manager.status()
        if found.state in {"none", "running"} and found.state != self._lab.state:
            # The manager is ahead: what is not written down yet is not told.
            told = {"state": self._lab.state, "topology": self._lab.topology}
            return LabStatusDto(running=False, topology_sha256=self._lab.topology_sha256).model_copy(update=told)
        native: str | None = await self._run_blocking(self._manager.netlab_status)
        return found.model_copy(update={"netlab_status": native})

    async def devices(self, session_id: str) -> list[DeviceInfoDto]:
        """The devices of the session's running lab. Raises HTTPException 404 where there is none."""
        await self._running(session_id)
        return self._devices()

    async def close(self, *, keep: bool) -> None:
        """End what runs; keep a lab that is up for the next server, or tear it down."""
        self._manager.keep()  # from here on it is this method's business, not that of the end of the process
        await self._run_blocking(self._manager.stop_loading)
        self.stop_starting(OutcomeCode.SERVER_ENDED)
        if self._operation:
            await asyncio.wait([self._operation.task])
        if not keep and self._lab and self._stuck_since is None:
            await asyncio.wait([self._operate(self._take_down(OutcomeCode.SERVER_ENDED)).task])
        await asyncio.gather(*self._background, return_exceptions=True)

    async def prune(self) -> int:
        """Forget labs that ended longer ago than the history is kept; their number. The same for logs."""
        await self._run_blocking(self._failed_logs.prune)
        return await self._store.prune(self._clock.now() - timedelta(days=self._settings.history_days))

    async def _running(self, session_id: str) -> Lab:
        await self._recovered.wait()
        if self._lab and self._lab.session_id == session_id and self._lab.state == "running":
            return self._lab
        reason = await self._unexpected_end(session_id)
        raise HTTPException(
            status.HTTP_404_NOT_FOUND,
            detail=f"no lab is running{f': {reason}' if reason else ''}; POST /lab starts one",
        )

    async def _unexpected_end(self, session_id: str) -> str | None:
        ended = await self._store.last_ended(session_id)
        return None if ended is None or ended.code in EXPECTED else ended.detail

    def _live(self) -> Lab:
        if self._lab is None:
            raise RuntimeError("there is no live lab")
        return self._lab

    def _devices(self) -> list[DeviceInfoDto]:
        return self._manager.current.devices if self._manager.current else []

    def _require_active(self, session_id: str) -> None:
        if not self._is_active(session_id):
            raise HTTPException(status.HTTP_404_NOT_FOUND, detail="the session has ended: join the queue again")

    def _busy(self) -> HTTPException:
        detail = (
            f"the lab is busy with {self._lab.topology if self._lab else 'another one'}: release it, or try again later"
        )
        if self._stuck_since is not None:
            detail = "the lab host is quarantined, because a lab could not be removed: GET /queue says what is left"
        return HTTPException(
            status.HTTP_423_LOCKED,
            detail=detail,
            headers=self._later(),
        )

    def _later(self) -> dict[str, str]:
        return {"Retry-After": str(self._settings.retry_after)}

    async def _discard(self, upload: Upload) -> None:
        await self._run_blocking(workspace.remove, upload.workspace.base)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _task(acquire: Acquire) -> asyncio.Task[AcquireResponseDto]:
    if acquire.task is None:
        raise RuntimeError("the acquire was not begun")
    return acquire.task


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Mark a failure as seen: whoever waited for it has gone, and `status` tells it."""
    if not task.cancelled():
        task.exception()


def _row(session_id: str, made: Workspace) -> Lab:
    return Lab(
        lab_id=made.lab_id,
        session_id=session_id,
        state=LiveLabState.STARTING,
        topology=made.topology,
        topology_sha256=made.identity.topology,
        extra_sha256=made.identity.extra,
        work_dir=str(made.base),
        devices=None,
    )


def _workspace(lab: Lab) -> Workspace:
    identity = Identity(lab.topology_sha256, lab.extra_sha256)
    return Workspace(lab.lab_id, Path(lab.work_dir), lab.topology, identity)
