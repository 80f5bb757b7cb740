"""What the routes work with, and the keeper that acts on what happens between requests."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import psutil
from sqlalchemy.exc import DBAPIError

from neops_remote_lab.clock import Clock
from neops_remote_lab.labs import LabService
from neops_remote_lab.log_stream import LogStreams
from neops_remote_lab.metrics import Metrics, Snapshot, StateCollector
from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.lab_manager import LabManager
from neops_remote_lab.preparations import Preparations
from neops_remote_lab.queue import SessionQueue
from neops_remote_lab.readiness import Readiness
from neops_remote_lab.settings import Settings
from neops_remote_lab.store import Database, LabStore, SessionStore

logger = logging.getLogger(__name__)

STOPPED_AFTER: Final = 5.0
"""Seconds that the keeper may wake up late; after more it takes it that the process or its machine stood still."""
LOG_THREADS: Final = 1
"""Threads that read logs: many readers take the processor from neither netlab nor the event loop."""
PRUNE_EVERY: Final = 3600.0
"""Seconds between two clean-ups of the history."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running server."""

    settings: Settings
    clock: Clock
    database: Database
    queue: SessionQueue
    labs: LabService
    preparations: Preparations
    readiness: Readiness
    log_streams: LogStreams
    metrics: Metrics
    run_blocking: Callable[..., Awaitable[Any]]
    started: float
    """Monotonic seconds."""

    async def settle(self) -> None:
        """Remove what belongs to sessions that have ended. To be called whenever one may have."""
        await self.labs.settle()
        await self.preparations.settle()

    def drain(self) -> None:
        """Take nothing new and let go of every call that is open, because the server is about to end."""
        self.queue.drain()
        self.readiness.stop()
        self.preparations.drain()
        self.labs.drain()


def build_services(settings: Settings, clock: Clock) -> Services:
    """Put the parts together; to be called inside the event loop."""
    run_blocking = _in_threads(settings.lab_threads)  # the framework's threads stay free whatever netlab does
    database = Database(settings.database, synchronous=settings.synchronous, busy_timeout=settings.busy_timeout)
    metrics = Metrics()
    queue = SessionQueue(SessionStore(database, settings.lab_host), settings, clock, metrics)
    netlab = NetlabCommands(settings)
    preparations = Preparations(
        netlab,
        settings,
        run_blocking=run_blocking,
        is_live=lambda session_id: queue.place(session_id) is not None,
    )
    labs = LabService(
        LabStore(database, settings.lab_host),
        LabManager(settings),
        settings,
        clock,
        run_blocking=run_blocking,
        is_active=queue.is_active,
        quarantine=queue.quarantine,
        prepared=preparations.take,
        metrics=metrics,
    )
    metrics.registry.register(StateCollector(lambda: _look_at(queue, labs, database)))
    streams = LogStreams(settings, _in_threads(LOG_THREADS))
    readiness = Readiness(settings, netlab, clock, run_blocking)
    return Services(
        settings,
        clock,
        database,
        queue,
        labs,
        preparations,
        readiness,
        streams,
        metrics,
        run_blocking,
        clock.monotonic(),
    )


def _in_threads(count: int) -> Callable[..., Awaitable[Any]]:
    limiter = anyio.CapacityLimiter(count)

    async def run_blocking(function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)

    return run_blocking


def _look_at(queue: SessionQueue, labs: LabService, database: Database) -> Snapshot:
    return Snapshot(
        waiting=queue.waiting,
        active=len(queue) - queue.waiting,
        lab_state=labs.lab.state if labs.lab else "none",
        references=labs.references,
        quarantined=queue.quarantined is not None,
        log_bytes=database.log_bytes,
    )


class Keeper:
    """Acts on timeouts, on SQL written by hand, and on labs that nobody needs any more, every `sql_poll` seconds."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._data_version = -1
        self._last_seen_due = self._prune_due = 0.0
        self._failing = False
        self._log_is_long = False
        self._task: asyncio.Task[None] | None = None
        self._announcement: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the queue, take over the lab that an earlier server has left, and begin to keep house."""
        services = self._services
        await services.run_blocking(ownership.claim, services.settings.work_dir)
        boot = boot_id()
        before = await services.queue.register_host(boot)
        self._data_version = await services.database.data_version()
        await services.queue.load()
        rebooted = before is not None and before != boot
        await services.labs.open(rebooted=rebooted, quarantined=services.queue.quarantined)
        self._announcement = asyncio.create_task(self._announce())
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the keeping; what is not written yet is written."""
        for task in filter(None, (self._task, self._announcement)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(DBAPIError, sqlite3.Error):  # when sessions were last seen is for the eye alone
            await self._services.queue.write_last_seen()

    async def _announce(self) -> None:
        await self._services.labs.opened()  # the first lab waits for that: what is only told comes after it
        await self._services.readiness.announce()

    async def _keep(self) -> None:
        pause, clock = self._services.settings.sql_poll, self._services.clock
        while True:
            before = clock.monotonic()
            await asyncio.sleep(pause)
            if (late := clock.monotonic() - before - pause) > STOPPED_AFTER:
                logger.warning("this process stood still for %.0f s: every session has its full time again", late)
                self._services.queue.renew_all()
            try:
                await self._look_around()
            except (DBAPIError, sqlite3.Error, OSError) as error:
                if not self._failing:
                    logger.error(  # noqa: TRY400 - the cause is all that helps
                        "the database cannot be used: %s. The queue goes on once that is mended", _cause(error)
                    )
                self._failing = True
            except Exception:
                # Without the keeper no session would ever end by itself: no single failure may end it.
                logger.exception("keeping house failed")
            else:
                if self._failing:
                    logger.info("the database can be used again")
                self._failing = False

    async def _look_around(self) -> None:
        services, now = self._services, self._services.clock.monotonic()
        if (version := await services.database.data_version()) != self._data_version:
            await services.queue.reconcile()
            self._data_version = version
        await services.queue.expire()
        await services.queue.promote_if_idle()
        await services.labs.tick(quarantined=services.queue.quarantined is not None)
        await services.preparations.settle()
        await self._limit_log()
        if now >= self._last_seen_due:
            self._last_seen_due = now + services.settings.last_seen_write
            await services.queue.write_last_seen()
        if now >= self._prune_due:
            self._prune_due = now + PRUNE_EVERY
            await services.queue.prune()
            await services.labs.prune()

    async def _limit_log(self) -> None:
        """Cut the database's write-ahead log off once the program has gone that had it grow."""
        database, limit = self._services.database, self._services.settings.wal_limit
        before = await database.measure_log()
        if before <= limit:
            return
        shrunk = await database.shrink_log()
        after = await database.measure_log()
        if shrunk:
            logger.info("the database's write-ahead log had %d bytes, and has %d now", before, after)
        elif not self._log_is_long:
            logger.warning(
                "the database's write-ahead log has %d bytes (--wal-limit %d): another program reads the database in "
                "a transaction that it does not end",
                *(before, limit),
            )
        self._log_is_long = not shrunk


def boot_id() -> str:
    """What tells one start of the machine from another."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else time.strftime("%FT%TZ", time.gmtime(psutil.boot_time()))


def _cause(error: Exception) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig else error
