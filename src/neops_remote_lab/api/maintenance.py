"""The maintenance loop: timeouts, changes made with SQL, labs without a session, pruning."""

import asyncio
import logging
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil

from neops_remote_lab.api.services import Services
from neops_remote_lab.netlab import ownership
from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.rows import Changes

logger = logging.getLogger(__name__)

STOPPED_AFTER: Final = 5.0
"""If the loop wakes up more than this many seconds late, the process or the machine was suspended."""
PRUNE_EVERY: Final = 3600.0
"""Seconds between two deletions of old history."""


class Maintenance:
    """Runs every `sql_poll` seconds: ends stale sessions, applies changes made with SQL, and ends unused labs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._changes = Changes()
        self._last_seen_due = self._prune_due = 0.0
        self._failing = False
        self._log_is_long = False
        self._task: asyncio.Task[None] | None = None
        self._announcement: asyncio.Task[None] | None = None
        self._others: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the queue, begin to adopt the labs of an earlier server, and start the loop."""
        services = self._services
        await services.run_blocking(ownership.claim, services.settings.netlab.work_dir)
        boot = boot_id()
        before = await services.liveness.register(boot)
        await services.database.changes()  # `load` reads everything
        await services.queue.load()
        rebooted = before is not None and before != boot
        await services.slots.open(rebooted=rebooted)
        self._announcement = asyncio.create_task(self._announce())
        self._task = asyncio.create_task(self._run())
        others = (services.admission.measure_repeatedly(), services.liveness.run())
        self._others = [asyncio.create_task(other) for other in others]
        if services.prestarts:
            self._others.append(asyncio.create_task(services.prestarts.run()))

    async def stop(self) -> None:
        """End the loop and write pending last-seen times."""
        for task in filter(None, (self._task, self._announcement, *self._others)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(DatabaseError):  # last-seen times are informational
            await self._services.queue.write_last_seen()

    async def _announce(self) -> None:
        await self._services.slots.opened()  # do not compete with the adoption, which the first lab waits for
        await self._services.readiness.announce()

    async def _run(self) -> None:
        pause, clock = self._services.settings.maintenance.sql_poll, self._services.clock
        while True:
            before = clock.monotonic()
            await self._services.database.wait_for_change(pause)
            if (late := clock.monotonic() - before - pause) > STOPPED_AFTER:
                logger.warning("this process was suspended for %.0f s: all session timeouts start anew", late)
                self._services.queue.renew_all()
            try:
                await self._maintain()
            except (DatabaseError, OSError) as error:
                if not self._failing:
                    logger.error(  # noqa: TRY400 - the cause is all that helps
                        "the database cannot be used: %s. The queue continues when it can be used again", error
                    )
                self._failing = True
            except Exception:
                # The loop must survive every error, because without it no session would ever time out.
                logger.exception("maintenance failed")
            else:
                if self._failing:
                    logger.info("the database can be used again")
                self._failing = False

    async def _maintain(self) -> None:
        services, now = self._services, self._services.clock.monotonic()
        self._changes |= await services.database.changes()
        if self._changes:
            await services.queue.reconcile(self._changes)
            self._changes = Changes()  # not earlier: if they could not be applied, they are applied the next time
        await services.queue.expire()
        await services.queue.promote()
        await services.slots.end_lost()
        await services.reconcile()
        await services.admission.hold_grants()
        await self._limit_log()
        if now >= self._last_seen_due:
            self._last_seen_due = now + services.settings.maintenance.last_seen_write
            await services.queue.write_last_seen()
            await services.queue.notice_signs_of_life()
        if now >= self._prune_due:
            self._prune_due = now + PRUNE_EVERY
            before = services.clock.now() - timedelta(days=services.settings.maintenance.history_days)
            await services.queue.prune(before)
            await services.slots.prune(before)
            await services.admission.prune(before)

    async def _limit_log(self) -> None:
        """Truncate a long write-ahead log, or warn once if another program's open transaction prevents it."""
        database, limit = self._services.database, self._services.settings.maintenance.wal_limit
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
    """An identifier of the machine's current boot."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else time.strftime("%FT%TZ", time.gmtime(psutil.boot_time()))
