"""Creates the services of a server and connects them."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from neops_remote_lab.api.gauges import Gauges
from neops_remote_lab.api.log_stream import LogStreams
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.metrics import Metrics
from neops_remote_lab.core.threads import RunBlocking, in_threads
from neops_remote_lab.labs.accesses import LabAccesses
from neops_remote_lab.labs.admission import Admission
from neops_remote_lab.labs.artifacts import Artifacts
from neops_remote_lab.labs.coordinator import LabCoordinator
from neops_remote_lab.labs.devices import Devices
from neops_remote_lab.labs.prestarts import Prestarts
from neops_remote_lab.labs.quarantine import HostQuarantine
from neops_remote_lab.labs.readiness import Readiness
from neops_remote_lab.labs.slot import Slot
from neops_remote_lab.labs.slots import Slots
from neops_remote_lab.labs.topology_checks import TopologyChecks
from neops_remote_lab.netlab.host_labs import HostLabs
from neops_remote_lab.netlab.logs import FailedLogs
from neops_remote_lab.queue.host_liveness import HostLiveness
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.opening import Stores
from neops_remote_lab.store.protocol import Database

LOG_THREADS: Final = 1
"""Number of threads that read logs: one, so that many readers do not slow down netlab or the event loop."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services of a running server, as handlers use them."""

    settings: ServiceSettings
    clock: Clock
    database: Database
    queue: SessionQueue
    liveness: HostLiveness
    slots: Slots
    admission: Admission
    prestarts: Prestarts | None
    accesses: LabAccesses
    devices: Devices
    checks: TopologyChecks
    readiness: Readiness
    log_streams: LogStreams
    metrics: Metrics
    run_blocking: RunBlocking
    started: float
    """Start time in monotonic seconds."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server begins to shut down."""

    async def reconcile(self) -> None:
        """End labs and topology checks of sessions that have ended. Call it after a session may have ended."""
        await self.slots.reconcile()
        await self.checks.reconcile()

    def drain(self) -> None:
        """Accept nothing new and end all waiting calls, because the server is shutting down."""
        self.draining.set()
        self.queue.drain()
        self.readiness.stop()
        self.checks.drain()
        self.slots.drain()
        self.accesses.drain()


def build_services(settings: ServiceSettings, clock: Clock) -> Services:
    """Create the services. Call it inside the event loop."""
    stores, host = Stores(settings.store), settings.netlab
    # Not the framework's threads, which netlab could exhaust. An operation of one slot must not wait for another's.
    run_blocking = in_threads(max(settings.labs.lab_threads, 2 * host.slots))
    metrics = Metrics()
    sessions, is_shared = stores.sessions(host.lab_host), stores.database.is_shared
    queue = SessionQueue(
        sessions,
        settings.queue,
        clock,
        metrics,
        host=host.lab_host,
        slots=host.slots,
        is_shared=is_shared,
        late=2 * settings.maintenance.last_seen_write if is_shared else 0,
    )
    liveness = HostLiveness(sessions, queue, settings.queue, clock, host=host.lab_host, is_shared=is_shared)
    host_labs = HostLabs(host)
    netlab = host_labs.commands
    admission = Admission(
        stores.memory(),
        netlab,
        queue,
        settings.labs,
        limits=host.several_labs,
        work_dir=host.work_dir,
        clock=clock,
        run_blocking=run_blocking,
    )
    checks = TopologyChecks(netlab, settings.labs, admission=admission, queue=queue, run_blocking=run_blocking)
    failed_logs = FailedLogs(host.work_dir, days=host.failed_log_days, number=host.max_failed_logs)
    accesses = LabAccesses()
    artifacts = Artifacts(host_labs.artifacts, clock, run_blocking)
    quarantine = HostQuarantine(queue)

    def coordinator(number: int) -> LabCoordinator:
        store, host_lab = stores.labs(host.lab_host, number), host_labs.new()
        slot = Slot(
            store=store,
            number=number,
            prestart=host.prestart,
            host_lab=host_lab,
            queue=queue,
            checks=checks,
            accesses=accesses,
            failed_logs=failed_logs,
            artifacts=artifacts,
            admission=admission,
            quarantine=quarantine,
            settings=settings.labs,
            clock=clock,
            metrics=metrics,
            run_blocking=run_blocking,
        )
        return LabCoordinator(
            store=store,
            slot=slot,
            host_lab=host_lab,
            queue=queue,
            failed_logs=failed_logs,
            artifacts=artifacts,
            run_blocking=run_blocking,
        )

    slots = Slots(coordinator, queue, host_labs, run_blocking, spare=int(host.prestart))
    prestarts = Prestarts(slots, checks, queue, admission) if host.prestart else None
    devices = Devices(
        slots=slots,
        accesses=accesses,
        netlab=netlab,
        settings=settings.devices,
        docker=host.docker,
        kill_grace=host.kill_grace,
        run_blocking=run_blocking,
    )
    metrics.registry.register(Gauges(queue, slots, admission, stores.database, host.lab_host))
    streams = LogStreams(settings.http, in_threads(LOG_THREADS))
    readiness = Readiness(host, netlab, clock, run_blocking, repeat_for=settings.labs.ready_cache)
    return Services(
        settings,
        clock,
        stores.database,
        queue,
        liveness,
        slots,
        admission,
        prestarts,
        accesses,
        devices,
        checks,
        readiness,
        streams,
        metrics,
        run_blocking,
        clock.monotonic(),
    )
