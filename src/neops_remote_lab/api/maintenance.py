"""The maintenance loop: acts on timeouts, on changes made with SQL, and on labs that nobody needs any more."""

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

logger = logging.getLogger(__name__)

STOPPED_AFTER: Final = 5.0
"""Seconds that the loop may wake up late; after more it takes it that the process or its machine stood still."""
PRUNE_EVERY: Final = 3600.0
"""Seconds between two clean-ups of the history."""


class Maintenance:
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
        """Load the queue, take over the lab that an earlier server has left, and begin the loop."""
        services = self._services
        await services.run_blocking(ownership.claim, services.settings.netlab.work_dir)
        boot = boot_id()
        before = await services.queue.register_host(boot)
        self._data_version = await services.database.data_version()
        await services.queue.load()
        rebooted = before is not None and before != boot
        await services.labs.open(rebooted=rebooted)
        self._announcement = asyncio.create_task(self._announce())
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the loop; what is not written yet is written."""
        for task in filter(None, (self._task, self._announcement)):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        with suppress(DatabaseError):  # when sessions were last seen is for the eye alone
            await self._services.queue.write_last_seen()

    async def _announce(self) -> None:
        await self._services.labs.opened()  # the first lab waits for that: what is only told comes after it
        await self._services.readiness.announce()

    async def _run(self) -> None:
        pause, clock = self._services.settings.maintenance.sql_poll, self._services.clock
        while True:
            before = clock.monotonic()
            await asyncio.sleep(pause)
            if (late := clock.monotonic() - before - pause) > STOPPED_AFTER:
                logger.warning("this process stood still for %.0f s: every session has its full time again", late)
                self._services.queue.renew_all()
            try:
                await self._maintain()
            except (DatabaseError, OSError) as error:
                if not self._failing:
                    logger.error(  # noqa: TRY400 - the cause is all that helps
                        "the database cannot be used: %s. The queue goes on once that is mended", error
                    )
                self._failing = True
            except Exception:
                # Without this loop no session would ever end by itself: no single failure may end it.
                logger.exception("maintenance failed")
            else:
                if self._failing:
                    logger.info("the database can be used again")
                self._failing = False

    async def _maintain(self) -> None:
        services, now = self._services, self._services.clock.monotonic()
        if (version := await services.database.data_version()) != self._data_version:
            await services.queue.reconcile()
            self._data_version = version
        await services.queue.expire()
        await services.queue.promote_if_idle()
        await services.reconcile()
        await self._limit_log()
        if now >= self._last_seen_due:
            self._last_seen_due = now + services.settings.maintenance.last_seen_write
            await services.queue.write_last_seen()
        if now >= self._prune_due:
            self._prune_due = now + PRUNE_EVERY
            before = services.clock.now() - timedelta(days=services.settings.maintenance.history_days)
            await services.queue.prune(before)
            await services.labs.prune(before)

    async def _limit_log(self) -> None:
        """Cut the database's write-ahead log off once the program has gone that had it grow."""
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
    """What tells one start of the machine from another."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else time.strftime("%FT%TZ", time.gmtime(psutil.boot_time()))
