"""Starts, adopts and ends the lab of a slot, and holds its state.

Each change is a background operation, one at a time: it commits the new state, runs netlab in a thread, and commits the
outcome. Only `lab_life.next_step` decides what to do next.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import LiveLabState, OutcomeCode, StartOutcome
from neops_remote_lab.core.metrics import Metrics
from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.accesses import LabAccesses
from neops_remote_lab.labs.acquires import Acquire, discard
from neops_remote_lab.labs.admission import Admission
from neops_remote_lab.labs.artifacts import Artifacts
from neops_remote_lab.labs.outcomes import end_of_start, start_outcome, start_refusal
from neops_remote_lab.labs.quarantine import HostQuarantine, Leftovers
from neops_remote_lab.labs.records import identity_of_lab, starting_lab, workspace_of
from neops_remote_lab.labs.refusals import Refused
from neops_remote_lab.labs.running import Running
from neops_remote_lab.labs.settings import LabSettings
from neops_remote_lab.labs.topology_checks import TopologyChecks
from neops_remote_lab.models import DeviceInfoDto
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.lab_life import Decision, Observed, Operation, Step, Wanted, next_step
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.netlab.ownership import number_of
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.protocol import LabStore
from neops_remote_lab.store.rows import Lab

logger = logging.getLogger(__name__)

LOGGED_REASON: Final = 500
"""Maximum length of the reason of a failed start in the log; the answer has all of it."""


class Slot:
    """A place for one lab on this host. The lab's state is in this object and in the database, nowhere else."""

    def __init__(
        self,
        *,
        store: LabStore,
        host_lab: HostLab,
        queue: SessionQueue,
        checks: TopologyChecks,
        accesses: LabAccesses,
        failed_logs: FailedLogs,
        artifacts: Artifacts,
        admission: Admission,
        quarantine: HostQuarantine,
        number: int,
        prestart: bool,
        settings: LabSettings,
        clock: Clock,
        metrics: Metrics,
        run_blocking: RunBlocking,
    ) -> None:
        self._store = store
        self._host_lab = host_lab
        self._queue = queue
        self._checks = checks
        self._accesses = accesses
        self._failed_logs = failed_logs
        self._artifacts = artifacts
        self._admission = admission
        self._leftovers = Leftovers(quarantine, number, clock)
        self._prestart = prestart
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._run_blocking = run_blocking
        self._lab: Lab | None = None
        self._end: tuple[OutcomeCode, str, datetime] | None = None
        self._devices: list[DeviceInfoDto] = []
        self._references = 0
        self._running: Running | None = None
        self._left_directories: list[Path] = []
        self._rebooted = False

    @property
    def lab(self) -> Lab | None:
        """The live lab as recorded in the database; None if there is none."""
        return self._lab

    @property
    def session_id(self) -> str | None:
        """The session of the live lab, or of the lab that is about to start."""
        if self._running and self._running.acquire:
            return self._running.acquire.session_id
        return self._lab.session_id if self._lab else None

    @property
    def devices(self) -> list[DeviceInfoDto]:
        """The devices of the running lab; empty if none is running."""
        return self._devices

    @property
    def references(self) -> int:
        """The number of acquires that are not yet released."""
        return self._references

    @property
    def running(self) -> Running | None:
        """The operation in progress; None if there is none."""
        return self._running

    @property
    def is_starting(self) -> bool:
        """Whether a lab is being started."""
        return self._running is not None and self._running.operation is Operation.START

    @property
    def waiting_for(self) -> str | None:
        """What the start in progress waits for, as a message; None if it does not wait."""
        obstacle = self._admission.obstacle(self._lab.lab_id) if self._lab else None
        return obstacle.detail if obstacle else None

    @property
    def has_leftovers(self) -> bool:
        """Whether leftovers of a lab could not be removed, so that no lab can start."""
        return self._leftovers.exist

    def next_step(self, acquire: Acquire | None = None) -> Decision:
        """Decide what to do next, for an acquire or, without one, for maintenance. Never blocks."""
        wanted = None
        if acquire:
            same_session = self.session_id == acquire.session_id
            wanted = Wanted(acquire.upload.workspace.identity, acquire.upload.reuse, same_session)
        return next_step(self._observed(), wanted, sweep_interval=self._settings.quarantine_retry)

    def _observed(self) -> Observed:
        lab, running, held = self._lab, self._running, self._host_lab.held
        starts_for = running.acquire if running else None
        return Observed(
            state=lab.state if lab else None,
            identity=starts_for.upload.workspace.identity if starts_for else identity_of_lab(lab) if lab else None,
            references=self._references,
            in_session=self.in_session,
            held=lab is not None and held is not None and held.lab_id == lab.lab_id,
            operation=running.operation if running else None,
            awaited=starts_for is not None and starts_for.present > 0,
            leftovers_for=self._leftovers.age,
        )

    @property
    def in_session(self) -> bool:
        """Whether the session of the lab is active or, for a lab started in advance, still waits."""
        session_id = self.session_id
        if session_id is None:
            return False
        in_advance = self._prestart and not self._references
        return self._queue.is_active(session_id) or (in_advance and self._queue.is_waiting(session_id))

    def carry_out(self, decision: Decision, acquire: Acquire | None = None) -> Running | None:
        """Begin what was decided. Returns the operation in progress, or None if there is none."""
        match decision.step:
            case Step.START if acquire:
                self._begin(Operation.START, self._start(acquire), acquire)
            case Step.STOP:
                # At once, because a call may be answered before the operation begins.
                self._lab = replace(self._live(), state=LiveLabState.STOPPING)
                self._begin(Operation.STOP, self._stop(decision.outcome or OutcomeCode.RELEASED))
            case Step.ADOPT:
                self._begin(Operation.ADOPT, self._adopt())
            case Step.SWEEP:
                self._begin(Operation.SWEEP, self._sweep())
            case Step.INTERRUPT:
                self.interrupt_start(OutcomeCode.SESSION_ENDED)
        return self._running

    def _begin(self, operation: Operation, work: Coroutine[Any, Any, None], acquire: Acquire | None = None) -> Running:
        self._leftovers.forget()
        task = asyncio.create_task(work)
        self._running = running = Running(operation, task, acquire)
        task.add_done_callback(self._ended)
        return running

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running = None
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, Refused):
            logger.error("an operation on the lab failed and will be retried", exc_info=error)

    def interrupt_start(self, why: OutcomeCode) -> None:
        """Interrupt a start in progress, if there is one: it fails and cleans up."""
        if self._running and self._running.acquire:
            self._running.stopped_for = why
            self._running.acquire.interrupt.set()

    # Starting

    async def _start(self, acquire: Acquire) -> None:
        uploaded = acquire.upload.workspace
        workspace = await self._checks.take(acquire.session_id, uploaded.identity) or uploaded
        self._lab = lab = starting_lab(acquire.session_id, workspace)
        self._references, self._devices = 0, []
        began = self._clock.monotonic()
        logger.info("session %.8s acquires %s: lab %s starts", lab.session_id, one_line(lab.topology), lab.lab_id)
        outcome = StartOutcome.FAILED
        try:
            await self._store.starting(lab, self._clock.now(), in_advance=acquire.in_advance)
            acquire.begun.set()
            await self._admission.admit(lab, workspace, acquire)
            devices = await self._run_blocking(self._start_blocking, workspace, acquire.interrupt)
            raw = [device.model_dump() for device in devices]
            number = await self._run_blocking(number_of, workspace.base) if self._admission.limits else None
            await self._store.running(lab.lab_id, raw, self._clock.now(), number)
            references, now = 0, self._clock.now()
            if acquire.takes_reference():
                references = await self._store.add_reference(lab.lab_id, acquire.session_id, acquire.key, now)
            self._lab = replace(lab, state=LiveLabState.RUNNING, devices=raw)
            self._references, self._devices = references, devices
            outcome = StartOutcome.UP
        except Exception as error:  # noqa: BLE001 - after any error the lab must be recorded as ended
            refused = start_refusal(error, self._stopped_for())
            outcome = start_outcome(error, refused)
            await self._fail(lab, error, refused)
        finally:
            self._admission.started(lab.lab_id)
            seconds = self._clock.monotonic() - began
            self._metrics.lab_started(seconds, outcome)
            logger.info("lab %s of session %.8s: %s after %.1f s", lab.lab_id, lab.session_id, outcome, seconds)

    def _start_blocking(self, workspace: Workspace, interrupt: threading.Event) -> list[DeviceInfoDto]:
        self._failed_logs.keep(workspace.lab_id, workspace.log)
        self._host_lab.reserve(workspace)
        devices = self._host_lab.start(workspace, interrupt, self._require_session)
        self._failed_logs.discard(workspace.lab_id)
        return devices

    def _require_session(self) -> None:
        """Keep netlab from starting a lab that is not ours any more: the server may have been suspended meanwhile.

        A suspension in the moment after this check is noticed only when `running` is recorded.
        """
        self._queue.hosts.require_own_live()
        if not self.in_session:
            self.interrupt_start(OutcomeCode.SESSION_ENDED)

    def _stopped_for(self) -> OutcomeCode | None:
        return self._running.stopped_for if self._running else None

    async def _fail(self, lab: Lab, error: Exception, refused: Refused) -> NoReturn:
        """Record why a start failed, and raise the refusal for the acquires that wait. The host lab has cleaned up."""
        code, detail = end_of_start(error, refused, self._stopped_for())
        logger.warning(
            "lab %s of session %.8s did not start: %s", lab.lab_id, lab.session_id, one_line(detail, LOGGED_REASON)
        )
        await self._run_blocking(self._failed_logs.prune)
        if self._host_lab.held and not self._host_lab.leftovers:
            await self._run_blocking(self._host_lab.tear_down)  # it started, but recording that failed
        if not self._host_lab.held:
            await discard(workspace_of(lab), self._run_blocking)  # it was prepared, but recording its start failed
        await self._run_blocking(self._host_lab.preload)
        await self._conclude(lab.lab_id, code, detail)
        raise refused from error

    # Sharing and releasing

    async def add_reference(self, acquire: Acquire) -> bool:
        """Add a reference to the running lab. Returns whether the acquire reuses it, instead of getting a fresh lab."""
        lab, fresh = self._live(), self._references == 0
        if acquire.takes_reference():
            now = self._clock.now()
            self._references = await self._store.add_reference(lab.lab_id, acquire.session_id, acquire.key, now)
            logger.info("session %.8s shares lab %s: %d references", lab.session_id, lab.lab_id, self._references)
        return acquire.upload.reuse or not fresh

    async def release_reference(self, key: str | None) -> None:
        """Release the newest reference, or the one with `key`. The last release begins the teardown."""
        lab = self._live()
        self._references = await self._store.release_reference(lab.lab_id, key, self._clock.now())
        logger.info(
            "session %.8s released lab %s: %d references are left", lab.session_id, lab.lab_id, self._references
        )
        if not self._references:
            self.stop(OutcomeCode.RELEASED)

    # Ending

    def stop(self, why: OutcomeCode) -> Running | None:
        """Begin to tear the lab down, or interrupt its start. Returns the operation in progress."""
        if self.is_starting:
            self.interrupt_start(why)
            return self._running
        return self.carry_out(Decision(Step.STOP, why))

    async def _stop(self, why: OutcomeCode) -> None:
        lab = self._live()
        logger.info("lab %s of session %.8s: teardown begins: %s", lab.lab_id, lab.session_id, why.message)
        self._accesses.end(lab.lab_id)
        await self._store.stopping(lab.lab_id)
        await self._artifacts.stop(lab.session_id)  # it works in the lab's directory, which is about to be removed
        await self._run_blocking(self._host_lab.preload)  # during the teardown, for the next lab
        began = self._clock.monotonic()
        await self._run_blocking(self._host_lab.tear_down)
        seconds = self._clock.monotonic() - began
        self._metrics.lab_torn_down(seconds)
        if await self._conclude(lab.lab_id, why):
            logger.info("lab %s of session %.8s is gone: teardown took %.1f s", lab.lab_id, lab.session_id, seconds)
            await self._sweep()

    async def _conclude(self, lab_id: str, code: OutcomeCode, detail: str | None = None) -> bool:
        """Record the end of a lab, or the one that could not be recorded before. Return False if something is left."""
        held = self._host_lab.held
        if held and held.lab_id == lab_id:
            await self._leftovers.report(f"{', '.join(self._host_lab.leftovers)} of lab {lab_id}")
            return False
        self._end = self._end or (code, detail or code.message, self._clock.now())
        await self._admission.ended(lab_id)
        await self._store.ended(lab_id, *self._end)
        self._lab, self._references, self._devices, self._end = None, 0, [], None
        return True

    async def _sweep(self) -> None:
        """Remove the leftovers of earlier labs. If that succeeds, lift a quarantine set by the server."""
        if leftovers := await self._run_blocking(self._host_lab.sweep, self._left_directories):
            await self._leftovers.report(f"{', '.join(leftovers)} of an earlier lab")
            return
        self._left_directories = []
        await self._leftovers.clear()

    # Adopting

    async def load(self, *, rebooted: bool) -> None:
        """Read the state that an earlier server recorded. Call it before the first upload can arrive.

        Args:
            rebooted: the host was restarted since, so no lab can be running.
        """
        self._rebooted = rebooted
        self._lab = await self._store.live_lab()
        self._leftovers.expect()

    def open(self, adopted: asyncio.Barrier, directories: Sequence[Path]) -> Running:
        """Begin to adopt or remove the lab of an earlier server. See `LabCoordinator.open`."""
        self._left_directories = list(directories)
        return self._begin(Operation.ADOPT, self._open(adopted))

    async def _open(self, adopted: asyncio.Barrier) -> None:
        await self._run_blocking(self._host_lab.preload)
        try:
            if self._lab:
                await self._adopt()
        finally:
            await adopted.wait()  # a sweep could take a lab that is not adopted yet for leftovers
        self._rebooted = False
        if not self.has_leftovers:
            await self._sweep()

    async def _adopt(self) -> None:
        """Continue the lab recorded in the database, or remove what is left of it."""
        lab = self._live()
        if self._end and await self._conclude(lab.lab_id, self._end[0]):
            return
        devices = [DeviceInfoDto.model_validate(device) for device in lab.devices or []]
        references = await self._store.held_references(lab.lab_id)
        await self._run_blocking(self._host_lab.adopt, workspace_of(lab))
        self._references = references
        may_run = lab.state is LiveLabState.RUNNING and self.in_session and not self._rebooted
        if may_run and await self._run_blocking(self._host_lab.runs):
            await self._admission.adopt(lab, devices)
            self._devices = devices
            logger.info("lab %s is adopted, with %d references", lab.lab_id, references)
            return
        self._lab = replace(lab, state=LiveLabState.STOPPING)
        await self._run_blocking(self._host_lab.tear_down)
        if not self._queue.is_active(lab.session_id):
            await self._conclude(lab.lab_id, OutcomeCode.SESSION_ENDED)
            return
        lost = "the server was restarted, and the lab did not run whole"
        if self._rebooted:
            lost = "the lab host was restarted"
        await self._conclude(lab.lab_id, OutcomeCode.LOST, f"lost: {lost}")

    async def close(self, *, keep: bool) -> None:
        """End running operations, then tear the lab down or, with `keep`, leave it running for the next server."""
        await self._run_blocking(self._host_lab.stop_preloading)
        self.interrupt_start(OutcomeCode.SERVER_ENDED)
        if self._running:
            await asyncio.wait([self._running.task])
        if not keep and self._lab and not self.has_leftovers and (ending := self.stop(OutcomeCode.SERVER_ENDED)):
            await asyncio.wait([ending.task])

    def _live(self) -> Lab:
        if self._lab is None:
            raise RuntimeError("there is no live lab")
        return self._lab
