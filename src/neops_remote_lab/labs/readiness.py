"""Whether this host can run a lab. The result is cached for a few seconds and shared by all requests."""

import asyncio
import logging
import threading

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.text import one_line
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.netlab import tools
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.settings import NetlabSettings

logger = logging.getLogger(__name__)


class Readiness:
    """Checks what is missing on this host, at most once per `repeat_for` seconds."""

    def __init__(
        self,
        settings: NetlabSettings,
        netlab: NetlabCommands,
        clock: Clock,
        run_blocking: RunBlocking,
        *,
        repeat_for: float,
    ) -> None:
        self._settings = settings
        self._repeat_for = repeat_for
        self._netlab = netlab
        self._clock = clock
        self._run_blocking = run_blocking
        self._looking: asyncio.Task[list[str]] | None = None
        self._looked_at = 0.0
        self._ended = threading.Event()

    async def problems(self) -> list[str]:
        """What prevents labs on this host, one sentence each. Empty after `stop`."""
        if self._ended.is_set():
            return []
        if self._looking is None or (self._looking.done() and self._is_old()):
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    def _is_old(self) -> bool:
        return self._clock.monotonic() - self._looked_at >= self._repeat_for

    async def _look(self) -> list[str]:
        found: list[str] = await self._run_blocking(tools.problems, self._settings, self._netlab, self._ended)
        self._looked_at = self._clock.monotonic()
        return [one_line(sentence) for sentence in found]

    async def announce(self) -> None:
        """Log the versions of the programs that labs need, and which are missing."""
        versions = await self._run_blocking(tools.versions, self._settings, self._ended)
        missing = await self._run_blocking(tools.missing, self._settings, self._ended)
        if self._ended.is_set():
            return
        logger.info("this host has %s", one_line(versions))
        for sentence in missing:
            logger.warning("no lab can start: %s", one_line(sentence))

    def stop(self) -> None:
        """Abort running checks, because the server is shutting down. Never blocks."""
        self._ended.set()
