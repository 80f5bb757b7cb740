"""Shows the other servers of a queue that this one is alive, and declares those silent or gone that are not.

Each server judges the others by its own monotonic clock: a host is silent when its beat has not changed for a while. No
clock is shared.
"""

import asyncio
import logging
import secrets
import signal
from collections.abc import Iterable

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import HostState
from neops_remote_lab.core.text import one_line
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import DatabaseError, SessionStore
from neops_remote_lab.store.rows import Host, Registration

logger = logging.getLogger(__name__)


class HostLiveness:
    """The part of one server in the life of all hosts of its queue."""

    def __init__(
        self,
        store: SessionStore,
        queue: SessionQueue,
        settings: QueueSettings,
        clock: Clock,
        *,
        host: str,
        is_shared: bool,
    ) -> None:
        """`is_shared` says whether other servers can use the database."""
        self._store = store
        self._queue = queue
        self._settings = settings
        self._clock = clock
        self._host = host
        self._is_shared = is_shared
        self._incarnation = secrets.token_hex(8)
        self._is_replaced = False
        self._boot_id = ""
        self._changed: dict[str, tuple[tuple[int, int], float]] = {}
        """Epoch and beat of each other host, and when this server saw them change, in monotonic seconds."""

    async def register(self, boot_id: str) -> str | None:
        """Register this host, before the queue is loaded. Returns the boot id recorded before; None for a new host."""
        self._boot_id = boot_id
        began = self._clock.monotonic()
        before = await self._register()
        self._queue.hosts.own_beats(began)
        if not self._is_shared:  # so no other server can be alive
            for host in self._others(await self._store.hosts()):
                await self._store.declare(host, HostState.GONE, self._clock.now())
        return before

    async def _register(self) -> str | None:
        registration = Registration(self._boot_id, self._queue.slots, self._settings.advertise, self._incarnation)
        return await self._store.register_host(registration)

    async def run(self) -> None:
        """Beat and judge, until the task is cancelled or another process takes this host's place."""
        while self._is_shared and not self._is_replaced:
            await asyncio.sleep(self._settings.host_beat)
            try:
                await self.look()
            except DatabaseError as error:
                logger.warning("this host could not show a sign of life: %s", error)
            except Exception:
                logger.exception("the liveness of hosts could not be determined")

    async def look(self) -> None:
        """Show one sign of life, and look for those of the other hosts."""
        try:
            await self._beat()
            await self._judge(await self._store.hosts())
        except DatabaseError:
            self._changed.clear()  # the others may have lost the database too, and could not beat either
            raise

    async def _beat(self) -> None:
        began = self._clock.monotonic()
        if await self._store.beat() or await self._comes_back():
            self._queue.hosts.own_beats(began)

    async def _comes_back(self) -> bool:
        """Register anew, because others have declared this host silent or gone. Returns False if it was replaced."""
        own = next(host for host in await self._store.hosts() if host.name == self._host)
        if own.incarnation != self._incarnation:
            logger.critical(
                "another server serves the queue with the name of this lab host (%s): this one ends; give each host a "
                "name of its own with --lab-host",
                one_line(self._host),
            )
            self._is_replaced = True
            signal.raise_signal(signal.SIGTERM)  # as an operator would end it
            return False
        logger.warning("other servers have declared this lab host %s: it registers anew", own.state)
        await self._register()
        await self._queue.reconcile()
        return True

    async def _judge(self, hosts: Iterable[Host]) -> None:
        now = self._clock.monotonic()
        self._queue.hosts.update(hosts)
        for host in self._others(hosts):
            sign = host.epoch, host.beat
            known, since = self._changed.get(host.name, (None, now))
            if known != sign:
                self._changed[host.name] = sign, now
            elif state := self._verdict(host, now - since):
                await self._declare(host, state, since)

    async def _declare(self, host: Host, state: HostState, since: float) -> None:
        if await self._store.declare(host, state, self._clock.now()):
            quiet = self._clock.monotonic() - since
            logger.warning("lab host %s is %s: no sign of life for %.0f s", one_line(host.name), state, quiet)
            self._changed[host.name] = (host.epoch + 1, host.beat), since
            await self._queue.reconcile()

    def _verdict(self, host: Host, quiet: float) -> HostState | None:
        if host.state is HostState.LIVE and quiet > self._settings.host_lease:
            return HostState.SILENT
        gone = host.state is HostState.SILENT and not host.is_draining
        return HostState.GONE if gone and quiet > self._settings.host_gone_after else None

    def _others(self, hosts: Iterable[Host]) -> list[Host]:
        return [host for host in hosts if host.name != self._host]
