"""The operations of sessions on the lab: acquire, status, release, destroy. Requests wait for operations of the slot.

No request changes a lab itself, so a client that disconnects interrupts nothing.
"""

import asyncio
import subprocess
from collections.abc import Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, NoReturn

from neops_remote_lab.core.codes import EXPECTED, LiveLabState, OutcomeCode
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Acquire, Upload, discard
from neops_remote_lab.labs.artifacts import Artifacts
from neops_remote_lab.labs.refusals import Reason, Refused
from neops_remote_lab.labs.slot import Slot
from neops_remote_lab.models import AcquireResponseDto, DeviceInfoDto, LabStatusDto
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.lab_life import Decision, Step
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.netlab.output import scrub
from neops_remote_lab.netlab.workspace import LOG_NAME, Workspace
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.protocol import LabStore
from neops_remote_lab.store.rows import EndedLab, Lab


class LabCoordinator:
    """The lab of one slot, on behalf of the session that is active in it."""

    def __init__(
        self,
        *,
        store: LabStore,
        slot: Slot,
        host_lab: HostLab,
        queue: SessionQueue,
        failed_logs: FailedLogs,
        artifacts: Artifacts,
        run_blocking: RunBlocking,
    ) -> None:
        self._store = store
        self._slot = slot
        self._host_lab = host_lab
        self._queue = queue
        self._failed_logs = failed_logs
        self._artifacts = artifacts
        self._run_blocking = run_blocking
        self._decisions = asyncio.Lock()
        self._acquires: dict[tuple[str, str], Acquire] = {}
        self._recovered = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def lab(self) -> Lab | None:
        """The live lab; None if there is none."""
        return self._slot.lab

    @property
    def session_id(self) -> str | None:
        """The session of the live lab, or of the lab that is about to start."""
        return self._slot.session_id

    @property
    def references(self) -> int:
        """The number of acquires that are not yet released."""
        return self._slot.references

    @property
    def in_session(self) -> bool:
        """Whether the session of the lab is active on this host or, for a lab started in advance, still waits."""
        return self._slot.in_session

    @property
    def is_idle(self) -> bool:
        """Whether there is neither a lab nor an operation on one."""
        return self._slot.lab is None and self._slot.running is None and not self._slot.has_leftovers

    # Acquiring

    async def acquire(self, session_id: str, upload: Upload, key: str | None) -> AcquireResponseDto:
        """Acquire the lab for a session: start or share it, and add a reference.

        A start continues when its caller is cancelled, but then adds no reference.

        Args:
            key: idempotency key of the request; None without one.

        Raises:
            Refused: netlab rejects the topology or fails, the lab is busy, or the session has ended.
        """
        acquire = self._begin_acquire(session_id, upload, key)
        with acquire.awaited():
            if acquire.upload is not upload:
                await discard(upload.workspace, self._run_blocking)
            return await asyncio.shield(_task(acquire))

    async def acquire_in_background(self, session_id: str, upload: Upload, key: str | None) -> None:
        """As `acquire`, but return as soon as the start is recorded; `status` shows the progress."""
        acquire = self._begin_acquire(session_id, upload, key)
        acquire.present += 1
        if acquire.upload is not upload:
            await discard(upload.workspace, self._run_blocking)
        begun = asyncio.ensure_future(acquire.begun.wait())
        await asyncio.wait([begun, _task(acquire)], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if _task(acquire).done():
            _task(acquire).result()

    def _begin_acquire(self, session_id: str, upload: Upload, key: str | None) -> Acquire:
        """The acquire with this key, or a new one with this upload.

        Nothing is awaited here: a request that waits must be counted before its acquire decides on its reference.
        """
        if key and (running := self._acquires.get((session_id, key))) and not running.is_abandoned:
            return running
        acquire = Acquire(session_id, upload, key)
        acquire.task = self._spawn(self._acquire(acquire))
        acquire.task.add_done_callback(_retrieve)
        if key:
            self._acquires[session_id, key] = acquire
            acquire.task.add_done_callback(lambda _: self._forget(session_id, key, acquire))
        return acquire

    def _forget(self, session_id: str, key: str, acquire: Acquire) -> None:
        if self._acquires.get((session_id, key)) is acquire:
            del self._acquires[session_id, key]

    async def _acquire(self, acquire: Acquire) -> AcquireResponseDto:
        try:
            await self._recovered.wait()
            if (answer := await self._answered_before(acquire)) is not None:
                return answer
            return await self._start_or_share(acquire)
        finally:
            if self._host_lab.held is not acquire.upload.workspace:
                await discard(acquire.upload.workspace, self._run_blocking)

    async def _answered_before(self, acquire: Acquire) -> AcquireResponseDto | None:
        if acquire.key is None:
            return None
        known = await self._store.reference_by_key(acquire.session_id, acquire.key)
        if known is None:
            return None
        if not known.held and known.outcome is not None and known.outcome not in EXPECTED:
            return None  # the lab was lost, and possibly the answer too: acquire again
        if known.held and self._slot.lab and self._slot.lab.lab_id == known.lab_id:
            return AcquireResponseDto(reused=True, devices=self._slot.devices)
        detail = "the acquire with this Idempotency-Key has been released: send a new key for a new acquire"
        raise Refused(Reason.RELEASED_KEY, detail)

    async def _start_or_share(self, acquire: Acquire) -> AcquireResponseDto:
        while True:
            async with self._decisions:
                if not self._queue.is_active(acquire.session_id):
                    raise self._not_active(acquire.session_id)
                decision = self._slot.next_step(acquire)
                if decision.step is Step.SHARE:
                    reused = await self._slot.add_reference(acquire)
                    return AcquireResponseDto(reused=reused, devices=self._slot.devices)
                running = self._slot.carry_out(decision, acquire)
                if decision.step is Step.REFUSE or running is None:
                    self._refuse()
            await asyncio.wait([running.task])
            started = running.acquire is acquire
            error = running.task.exception()
            # The failure of a start is raised for every acquire that joined it, and an error of the host for all.
            if error and (started or decision.step is Step.JOIN or not isinstance(error, Refused)):
                raise error
            if started:
                return AcquireResponseDto(reused=False, devices=self._slot.devices)

    def _not_active(self, session_id: str) -> Refused:
        if self._queue.is_live(session_id):  # other servers have declared this host silent
            return Refused(Reason.BUSY, "the session is not active on this lab host any more: try again later")
        return Refused(Reason.SESSION_ENDED, "the session has ended: join the queue again")

    def _refuse(self) -> NoReturn:
        if self._slot.has_leftovers:
            detail = "the lab host is quarantined, because a lab could not be removed: GET /queue says what is left"
            raise Refused(Reason.QUARANTINED, detail)
        lab = self._slot.lab
        detail = f"the lab is busy with {lab.topology if lab else 'another one'}: release it, or try again later"
        raise Refused(Reason.BUSY, detail)

    # Starting in advance

    async def start_in_advance(self, session_id: str, workspace: Workspace) -> None:
        """Begin to start the lab of a waiting session, without a reference, if this slot is idle."""
        acquire = Acquire(session_id, Upload(workspace, reuse=True), key=None, in_advance=True)
        async with self._decisions:
            if self.is_idle and self._queue.is_waiting(session_id):
                self._slot.carry_out(Decision(Step.START), acquire)
                return
        await discard(acquire.upload.workspace, self._run_blocking)

    async def reclaim(self) -> None:
        """Begin to tear down a lab that was started in advance, because its memory is needed."""
        async with self._decisions:
            session_id = self._slot.session_id
            if session_id and not self._queue.is_active(session_id) and not self._slot.references:
                self._slot.stop(OutcomeCode.RECLAIMED)

    # Looking

    async def status(self, session_id: str) -> LabStatusDto:
        """The session's lab. If the session has none and did not end it itself, `error` says why."""
        await self._recovered.wait()
        lab = self._of(session_id)
        if lab is None:
            return LabStatusDto(running=False, error=await self._unexpected_end(session_id))
        found = LabStatusDto(
            running=lab.state is LiveLabState.RUNNING,
            topology=lab.topology,
            ref_count=self._slot.references,
            devices=self._slot.devices,
            state=lab.state.value,
            topology_sha256=lab.topology_sha256,
            waiting_for=self._slot.waiting_for,
        )
        native: str | None = await self._run_blocking(self._host_lab.netlab_status)
        return found.model_copy(update={"netlab_status": native})

    async def devices(self, session_id: str) -> list[DeviceInfoDto]:
        """The devices of the session's running lab.

        Raises:
            Refused: the session has no running lab.
        """
        await self._require_running(session_id)
        return self._slot.devices

    def log(self, session_id: str) -> Path | None:
        """The path of netlab's log of the session's lab; None if the session has no lab."""
        lab = self._of(session_id)
        return Path(lab.work_dir) / LOG_NAME if lab else None

    async def failed_log(self, session_id: str) -> Path | None:
        """The path of netlab's log of the session's latest lab, if that lab did not start; otherwise None."""
        await self._recovered.wait()
        failed = None if self._of(session_id) else await self._failed(session_id)
        return failed[1] if failed else None

    async def _failed(self, session_id: str) -> tuple[EndedLab, Path] | None:
        """The session's latest lab and the path of its log, if that lab did not start; otherwise None."""
        if (ended := await self._store.last_ended(session_id)) is None or ended.code in EXPECTED:
            return None
        kept = self._failed_logs.path(ended.lab_id)
        return (ended, kept) if await self._run_blocking(kept.exists) else None

    async def artifacts(self, session_id: str) -> IO[bytes]:
        """The artifact archive of the session's running lab, or of its latest lab if that did not start.

        The caller closes it. Cancelling the call stops the collection, and so does the end of the lab.

        Raises:
            Refused: there is neither, or the archive cannot be created.
        """
        await self._recovered.wait()
        lab, workspace = self._of(session_id), self._host_lab.held
        if lab and workspace and lab.state is LiveLabState.RUNNING:
            return await self._artifacts.take(session_id, workspace, self._slot.devices)
        if lab is None and (failed := await self._failed(session_id)):
            return await self._artifacts.take_of_failed(*failed)
        raise await self._no_lab(session_id)

    def in_the_way(self) -> str | None:
        """Why no lab can start on this host for any session, for example a lab that is not ours. Blocks."""
        try:
            return self._host_lab.in_the_way()
        except FileNotFoundError:
            return None  # netlab is not installed, which is reported elsewhere
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            return f"the server cannot determine whether a lab can start: {scrub(failure(error))}"

    # Letting go

    async def release(self, session_id: str, key: str | None = None) -> None:
        """Release one reference: that of the acquire with `key`, if given. The last release tears the lab down.

        Raises:
            Refused: no lab is running, or no acquire had the key.
        """
        await self._recovered.wait()
        async with self._decisions:
            known = await self._store.reference_by_key(session_id, key) if key else None
            if known and not known.held:
                return  # a repeated request: the reference is released already
            if key and not known:
                raise Refused(Reason.UNKNOWN_KEY, "no acquire had this Idempotency-Key")
            await self._require_running(session_id)
            await self._slot.release_reference(key)

    async def destroy(self, session_id: str, *, force: bool) -> bool:
        """Begin to tear the lab down; False if there is none, or if its teardown has begun.

        Raises:
            Refused: the lab is in use and `force` is false.
        """
        await self._recovered.wait()
        async with self._decisions:
            starting = self._slot.is_starting
            if self._slot.session_id != session_id or (self._slot.running and not starting):
                return False
            if not force and (starting or self._slot.references):
                raise Refused(Reason.IN_USE, "the lab is in use: release its references first, or send force=true")
            self._slot.stop(OutcomeCode.DESTROYED)
            return True

    # Between requests

    async def load(self, *, rebooted: bool) -> None:
        """Read the state that an earlier server recorded. See `Slot.load`."""
        await self._slot.load(rebooted=rebooted)

    def open(self, adopted: asyncio.Barrier, directories: Sequence[Path] = ()) -> None:
        """Begin to adopt or remove the lab of an earlier server. Calls on the lab wait for the end of that.

        Args:
            adopted: passed by all slots of the host when their labs are adopted, before leftovers are removed.
            directories: lab directories that an earlier server may have left behind.
        """
        # A second callback: the slot's own must clear the operation first, or waiting calls would find it running.
        self._slot.open(adopted, directories).task.add_done_callback(lambda _: self._recovered.set())

    async def opened(self) -> None:
        """Wait until the lab of an earlier server is adopted or removed."""
        await self._recovered.wait()

    async def reconcile(self) -> None:
        """Carry out pending maintenance: end a lab whose session has ended, and retry failed operations."""
        async with self._decisions:
            self._slot.carry_out(self._slot.next_step())

    async def end_if_lost(self) -> None:
        """Begin to tear down a lab that other servers have declared lost. Its session waits, or it would have ended."""
        async with self._decisions:
            lab = None if self._slot.running else self._slot.lab
            if lab and lab.state is LiveLabState.RUNNING and await self._store.live_lab() is None:
                self._slot.stop(OutcomeCode.LOST)

    def drain(self) -> None:
        """Interrupt everything that calls wait for, because the server is shutting down."""
        self._slot.interrupt_start(OutcomeCode.SERVER_ENDED)
        self._artifacts.interrupt(Reason.SERVER_ENDS)

    async def close(self, *, keep: bool) -> None:
        """End running operations, then tear the lab down or, with `keep`, leave it running for the next server."""
        await self._artifacts.close()
        await self._slot.close(keep=keep)
        await asyncio.gather(*self._background, return_exceptions=True)

    async def prune(self, before: datetime) -> int:
        """Delete labs that ended before a time, and logs past their own retention. Returns the number of labs."""
        await self._run_blocking(self._failed_logs.prune)
        return await self._store.prune(before)

    def _of(self, session_id: str) -> Lab | None:
        lab = self._slot.lab
        return lab if lab and lab.session_id == session_id else None

    async def _require_running(self, session_id: str) -> None:
        await self._recovered.wait()
        if (lab := self._of(session_id)) and lab.state is LiveLabState.RUNNING:
            return
        raise await self._no_lab(session_id)

    async def _no_lab(self, session_id: str) -> Refused:
        reason = await self._unexpected_end(session_id)
        detail = f"no lab is running{f': {reason}' if reason else ''}; POST /lab starts one"
        return Refused(Reason.NO_LAB, detail)

    async def _unexpected_end(self, session_id: str) -> str | None:
        ended = await self._store.last_ended(session_id)
        return None if ended is None or ended.code in EXPECTED else ended.detail

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
    """Mark an exception as retrieved: no request may be waiting for it, and `status` reports it."""
    if not task.cancelled():
        task.exception()
