"""The session queue: join, wait, promote, renew, expire, end.

The store is authoritative and is written first. The session cache mirrors it, so that position queries need no I/O.
"""

import logging
import math
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import EndCode, QuarantineSource, SessionState
from neops_remote_lab.core.metrics import Metrics
from neops_remote_lab.core.text import one_line
from neops_remote_lab.queue.estimates import HoldHistory
from neops_remote_lab.queue.known_hosts import KnownHosts, Owner
from neops_remote_lab.queue.long_polls import LongPolls
from neops_remote_lab.queue.session_cache import SessionCache
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import ANY_CHANGE, Changes, EndedSession, Joining, Quarantine, Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """A session with its position in the queue and the estimated seconds until it becomes active."""

    session: Session
    position: int
    eta_seconds: float | None


class SessionQueue:
    """A queue, as one of the servers sees it that serve the queue with their lab hosts."""

    def __init__(
        self,
        store: SessionStore,
        settings: QueueSettings,
        clock: Clock,
        metrics: Metrics | None = None,
        *,
        host: str,
        slots: int = 1,
        is_shared: bool = False,
        late: float = 0,
    ) -> None:
        """Create an empty queue; `load` fills it.

        Args:
            metrics: defaults to a registry that is not exported.
            host: the name of this server's lab host.
            slots: the number of slots of this host.
            is_shared: whether other servers may serve the queue too.
            late: seconds by which this server may learn late that another one has seen a session.
        """
        self._is_shared = is_shared
        self._late = late
        self._store = store
        self._slots = slots
        self._hosts = KnownHosts(host, clock, settings.host_lease if is_shared else None)
        self._seen_elsewhere: dict[str, datetime] = {}
        self._settings = settings
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._cache = SessionCache()
        self._holds = HoldHistory()
        self._polls = LongPolls(self._cache)
        self._unwritten: dict[str, datetime] = {}
        self._draining = False
        self._quarantine: Quarantine | None = None

    async def load(self) -> None:
        """Load the queue from the database. All session timeouts start anew."""
        self._holds = HoldHistory(await self._store.latest_holds())
        self._cache.reload(await self._store.live_sessions(), self._clock.monotonic())  # counted by an earlier server
        await self.reconcile()

    @property
    def hosts(self) -> KnownHosts:
        """The lab hosts of the queue."""
        return self._hosts

    def owner(self, session_id: str) -> Owner | None:
        """The other host that a session is active on; None if it is this one, or if there is none."""
        session = self._cache.get(session_id)
        return self._hosts.owner_of(session) if session else None

    async def occupied_slots(self) -> list[int]:
        """The slots of this host that have an active session or a live lab, according to the database."""
        return await self._store.occupied_slots()

    @property
    def slots(self) -> int:
        """The number of slots of this host."""
        return self._slots

    @property
    def active(self) -> list[Session]:
        """The active sessions, by slot."""
        return self._cache.active

    @property
    def _may_grant(self) -> bool:
        return self._hosts.have_room(self._cache.active)

    async def hold_grants(self, *, on: bool) -> None:
        """Let no further session become active on this host, whichever server would grant it; False ends that."""
        if (own := self._hosts.own) and own.holds_grants != on:
            await self._store.hold_grants(on=on)
            self._hosts.update(await self._store.hosts())
            await self.promote()

    @property
    def quarantined(self) -> str | None:
        """Why no session is admitted; None if the host is not quarantined."""
        return self._quarantine.reason if self._quarantine else None

    @property
    def quarantined_by(self) -> QuarantineSource | None:
        """Who quarantined the host; None if it is not quarantined."""
        return self._quarantine.source if self._quarantine else None

    @property
    def waiting(self) -> int:
        """The number of waiting sessions."""
        return self._cache.waiting

    def __len__(self) -> int:
        return len(self._cache)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._cache)

    async def join(self, *, client: str | None, purpose: str | None, key: str | None) -> Place:
        """Append a session, durably. With the idempotency key of a live session, return that session instead."""
        joining = Joining(secrets.token_hex(16), client, purpose, key, self._clock.now())
        session = await self._store.join(joining, promote=self._may_grant)
        if session.session_id in self._cache:
            self._cache.renew(session.session_id, self._clock.monotonic())
        else:
            self._metrics.joined()
            self._put(session)
            position, who = self._cache.position(session), one_line(session.client or "without a label")
            logger.info("session %.8s joined: position %d, client %s", session.session_id, position, who)
        await self.promote()  # an active session may have ended during the write
        return self._place(self._cache.get(session.session_id) or session)

    async def promote(self) -> None:
        """Make waiting sessions active if a host has free slots."""
        if self._may_grant and self.waiting:
            self._promoted(await self._store.promote(self._clock.now()))

    def place(self, session_id: str) -> Place | None:
        """The place of a session; None if the session is not live."""
        session = self._cache.get(session_id)
        return self._place(session) if session else None

    def _place(self, session: Session) -> Place:
        position = self._cache.position(session)
        eta = None
        if capacity := self._hosts.capacity:
            held_for = self._cache.held_for(self._clock.monotonic()).values()
            eta = self._holds.eta(position, held_for, capacity)
        return Place(session, position, eta)

    def is_active(self, session_id: str) -> bool:
        """Whether a session is active on this host."""
        return self.slot_of(session_id) is not None

    def slot_of(self, session_id: str) -> int | None:
        """The slot of a session that is active on this host; None for any other session."""
        session = self._cache.get(session_id)
        return session.slot if session and self._hosts.is_own(session) else None

    def is_waiting(self, session_id: str) -> bool:
        """Whether a session is live and not yet active."""
        session = self._cache.get(session_id)
        return session is not None and session.state is SessionState.WAITING

    def is_live(self, session_id: str) -> bool:
        """Whether a session is waiting or active."""
        return session_id in self._cache

    @property
    def next_waiting(self) -> str | None:
        """The id of the waiting session that becomes active next; None if none waits."""
        return next(iter(self._cache.nearest(1)), None)

    def renew_all(self) -> None:
        """Restart the timeouts of all sessions."""
        self._cache.renew_all(self._clock.monotonic())

    def renew(self, session_id: str) -> bool:
        """Restart the timeout of a session. Returns whether the session is live."""
        if session_id not in self._cache:
            return False
        self._cache.renew(session_id, self._clock.monotonic())
        self._unwritten[session_id] = self._clock.now()
        return True

    @contextmanager
    def open_call(self, session_id: str) -> Iterator[None]:
        """A context for a call of a session, which does not become stale inside it."""
        self.renew(session_id)
        self._cache.call_opened(session_id)
        try:
            yield
        finally:
            self._cache.call_closed(session_id, self._clock.monotonic())

    async def wait_until_active(self, session_id: str) -> None:
        """Wait until the session is active or has ended, or until the server is draining."""
        if self._waits(session_id):
            await self._polls.hold(session_id, None, math.inf)

    async def wait_while_active_on(self, host: str, session_id: str) -> None:
        """Wait until the session is not active on a host any more."""
        while (session := self._cache.get(session_id)) and session.host == host:
            await self._polls.hold(session_id, None, math.inf)

    async def wait_for_change(self, session_id: str, seconds: float, known: int | None) -> None:
        """As `wait_until_active`, but return also when the position changes, or after `seconds`.

        Args:
            known: the position that the caller knows; None means the current one.
        """
        place = self._waits(session_id)
        if place and seconds > 0 and known in (None, place.position):
            await self._polls.hold(session_id, place.position, seconds)

    def _waits(self, session_id: str) -> Place | None:
        place = self.place(session_id)
        return place if place and place.position and not self._draining else None

    @property
    def draining(self) -> bool:
        """Whether the server accepts no new sessions, because it is shutting down."""
        return self._draining

    def drain(self) -> None:
        """Accept no new sessions, and answer all waiting calls."""
        self._draining = True
        self._polls.answer_all()

    async def end(self, session_id: str) -> bool:
        """End a session and promote the next ones, durably. Returns False if the session is not live."""
        await self.learn(session_id)
        if session_id not in self._cache:
            return False
        return session_id in await self._end([session_id], EndCode.CLIENT)

    async def _end(self, session_ids: list[str], code: EndCode) -> tuple[str, ...]:
        detail = code.message.format(max_hold=self._settings.max_hold)
        ending = await self._store.end(session_ids, code, detail, self._clock.now())
        for session_id in session_ids:
            self._forget(session_id, code, detail)
        self._promoted(ending.promoted)
        return ending.ended

    def _forget(self, session_id: str, code: EndCode, detail: str) -> None:
        held = self._cache.held_for(self._clock.monotonic()).get(session_id)
        if held is not None:
            self._holds.add(held)
        self._metrics.ended(code, held)
        self._log_end(session_id, detail, held)
        self._cache.drop(session_id)
        self._unwritten.pop(session_id, None)
        self._polls.answer([session_id])
        self._polls.moved()

    def _log_end(self, session_id: str, detail: str, held: float | None) -> None:
        active = "was not active" if held is None else f"active for {held:.1f} s"
        logger.info("session %.8s ended: %s, %s", session_id, one_line(detail), active)

    def _promoted(self, sessions: Sequence[Session]) -> None:
        for session in sessions:
            self._put(session)
        if sessions:
            self._polls.answer([session.session_id for session in sessions])
            self._polls.moved()

    def _put(self, session: Session) -> None:
        self._cache.put(session, self._clock.monotonic())
        if session.state is SessionState.ACTIVE:
            self._became_active(session)

    def _became_active(self, session: Session) -> None:
        """Count and log a session's activation on this host. Call it once per session, however it became active."""
        if not self._hosts.is_own(session):
            return
        waited = (session.activated_at or session.created_at) - session.created_at
        self._metrics.became_active(max(0.0, waited.total_seconds()))
        who = one_line(session.client or "without a label")
        logger.info("session %.8s is active: waited %.1f s, client %s", session.session_id, waited.total_seconds(), who)

    async def expire(self) -> tuple[str, ...]:
        """End stale sessions, and active ones that exceed the maximum hold. Returns their ids."""
        now = self._clock.monotonic()
        limits = self._settings
        waiting, active = limits.waiting_timeout + self._late, limits.active_timeout + self._late
        stale = self._cache.stale(now, waiting_timeout=waiting, active_timeout=active)
        ended: tuple[str, ...] = ()
        if stale:
            ended += await self._end(stale, EndCode.STALE)
        held_for = self._cache.held_for(now).items()
        over = [session_id for session_id, held in held_for if limits.max_hold and held > limits.max_hold]
        if over:
            ended += await self._end(over, EndCode.MAX_HOLD)
        return ended

    async def reconcile(self, changes: Changes = ANY_CHANGE) -> None:
        """Apply changes that others made in the database, as if they had been made through the API."""
        if changes.hosts:
            self._note_quarantine(await self._store.quarantine())
            self._hosts.update(await self._store.hosts())
        if changes.sessions != frozenset():
            await self._reload(changes.sessions)
        await self.promote()

    async def learn(self, session_id: str) -> None:
        """Read a session that another server may have changed a moment ago.

        Others do not change a session that is active on this host, unless they find the host silent. If the session is
        active, the one that was active in its slot before is read too: it must not seem to be active.
        """
        if self._is_shared and not (self._hosts.is_own_live and self.is_active(session_id)):
            await self._reload([session_id])
        if predecessors := self._cache.predecessors(session_id):
            await self._reload(predecessors)

    async def _reload(self, session_ids: Collection[str] | None) -> None:
        """Replace what is known of these sessions by what the database says; None means all sessions."""
        rows = await self._store.live_sessions(session_ids)
        # The database has one connection, and its callers go on in the order of its statements: these rows are neither
        # older than what the cache has learned before, nor newer than what it learns next. So nothing is awaited here.
        difference = self._cache.reload(rows, self._clock.monotonic(), session_ids)
        self._polls.answer(difference.vanished | difference.changed)
        self._polls.moved()
        for session in difference.activated:
            self._became_active(session)
        endings = await self._store.endings(difference.vanished) if self._is_shared and difference.vanished else {}
        for session_id in difference.vanished:
            ended = endings.get(session_id)
            if ended is None or ended.code is EndCode.OPERATOR:  # another server has counted the others
                self._metrics.ended(EndCode.OPERATOR, None)
            self._log_end(session_id, ended.detail if ended else EndCode.OPERATOR.message, None)

    async def notice_signs_of_life(self) -> None:
        """Restart the timeouts of sessions that other servers have seen.

        Reading all of them is cheap, and most have changed, because each server writes those with open calls.
        """
        if not self._is_shared:
            return
        seen = await self._store.last_seen()
        for session_id, at in seen.items():
            if session_id in self._cache and self._seen_elsewhere.get(session_id, at) != at:
                self._cache.renew(session_id, self._clock.monotonic())
        self._seen_elsewhere = seen

    async def quarantine(self, reason: str | None) -> None:
        """Quarantine the host for a reason; None lifts the quarantine. One set by an operator is not changed."""
        if reason != self.quarantined:
            self._note_quarantine(await self._store.set_quarantine(reason, self._clock.now()))
            self._hosts.update(await self._store.hosts())
        await self.promote()

    def _note_quarantine(self, quarantine: Quarantine | None) -> None:
        if quarantine != self._quarantine:
            if quarantine:
                logger.error("the host is quarantined: %s", one_line(quarantine.reason))
            else:
                logger.info("the quarantine is lifted")
        self._quarantine = quarantine

    async def write_last_seen(self) -> None:
        """Write the times at which sessions were last seen. Operators read them; the server does not."""
        seen, self._unwritten = self._unwritten, {}
        if self._is_shared:  # other servers do not know which calls are open here
            seen |= dict.fromkeys(self._cache.with_open_calls, self._clock.now())
        await self._store.record_last_seen(seen)

    async def prune(self, before: datetime) -> int:
        """Delete sessions that ended before a time. Returns their number."""
        return await self._store.prune(before)

    async def ended(self, session_id: str) -> EndedSession | None:
        """Why a session ended; None if no ended session has that id."""
        return await self._store.ended(session_id)

    def unseen_for(self, session_id: str) -> float:
        """Seconds since a live session was last seen; 0 during a call."""
        return self._cache.unseen_for(session_id, self._clock.monotonic())
