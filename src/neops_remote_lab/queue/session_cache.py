"""The live sessions in memory, without I/O: positions, active sessions, stale sessions.

Times are in monotonic seconds and are passed in.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.store.rows import Session

_Place: TypeAlias = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """The sessions that a reload of the cache changed."""

    vanished: frozenset[str]
    """Ids of those no longer live."""
    changed: frozenset[str]
    """Ids of those still live, but different, for example in state or rank."""
    activated: tuple[Session, ...]
    """Those active now, and not before."""


class SessionCache:
    """The live sessions in FIFO order, with the time at which each was last seen.

    The waiting sessions are a sorted list: positions are found by bisection, and joining appends.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._waiting: list[_Place] = []
        self._last_seen: OrderedDict[str, float] = OrderedDict()  # the least recently seen first
        self._open_calls: Counter[str] = Counter()
        self._active: dict[str, _Active] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[Session]:
        """Iterate over the active sessions by host and slot, then the waiting ones, in order."""
        yield from self.active
        for *_, session_id in self._waiting:
            yield self._sessions[session_id]

    @property
    def active(self) -> list[Session]:
        """The active sessions, by host and slot."""
        return sorted((each.session for each in self._active.values()), key=_seat)

    @property
    def occupied(self) -> int:
        """The number of active sessions."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """The number of waiting sessions."""
        return len(self._waiting)

    def predecessors(self, session_id: str) -> list[str]:
        """The sessions that are active in the same slot as this one, which is impossible: the cache is outdated."""
        if (active := self._active.get(session_id)) is None:
            return []
        seat = _seat(active.session)
        return [name for name, each in self._active.items() if name != session_id and _seat(each.session) == seat]

    def nearest(self, count: int) -> list[str]:
        """The ids of the first `count` waiting sessions, in order."""
        return [session_id for *_, session_id in self._waiting[:count]]

    def get(self, session_id: str) -> Session | None:
        """A live session; None if there is none with that id."""
        return self._sessions.get(session_id)

    def position(self, session: Session) -> int:
        """The position of a session: 0 is active, 1 is next, and so on."""
        if session.state is SessionState.ACTIVE:
            return 0
        return bisect_left(self._waiting, _place(session)) + 1

    def put(self, session: Session, now: float) -> None:
        """Add or replace a session, which counts as seen at `now`."""
        before = self._active.get(session.session_id)
        self.drop(session.session_id, keep_calls=True)
        self._sessions[session.session_id] = session
        if session.state is SessionState.ACTIVE:
            self._active[session.session_id] = _Active(session, before.since if before else now)
        else:
            place = _place(session)
            self._waiting.insert(bisect_left(self._waiting, place), place)
        self.renew(session.session_id, now)

    def drop(self, session_id: str, *, keep_calls: bool = False) -> None:
        """Remove a session, if it is in the cache.

        Args:
            keep_calls: keep the count of its open calls, for a session that is about to be replaced.
        """
        session = self._sessions.pop(session_id, None)
        if session is None:
            return
        if self._active.pop(session_id, None) is None:
            del self._waiting[bisect_left(self._waiting, _place(session))]
        del self._last_seen[session_id]
        if not keep_calls:
            self._open_calls.pop(session_id, None)

    def reload(self, rows: Iterable[Session], now: float, session_ids: Iterable[str] | None = None) -> Difference:
        """Replace sessions by those of the database. Sessions that do not change keep their last-seen time.

        Args:
            session_ids: the sessions that were looked up; None means all.
        """
        truth = {row.session_id: row for row in rows}
        before = self._sessions
        looked_up = before.keys() if session_ids is None else before.keys() & set(session_ids)
        vanished = looked_up - truth.keys()
        differing = {name for name, row in truth.items() if (known := before.get(name)) is None or known != row}
        changed = differing & before.keys()
        activated = [row for name, row in truth.items() if _is_active(row) and not _is_active(before.get(name))]
        for session_id in vanished:
            self.drop(session_id)
        for session_id in changed:  # remove all before adding any, because two may have swapped ranks
            self.drop(session_id, keep_calls=True)
        for session_id in differing:
            self.put(truth[session_id], now)
        return Difference(frozenset(vanished), frozenset(changed), tuple(activated))

    def renew(self, session_id: str, now: float) -> None:
        """Record that a live session was seen."""
        self._last_seen[session_id] = now
        self._last_seen.move_to_end(session_id)

    def renew_all(self, now: float) -> None:
        """Record that all sessions were seen, after a time in which no call could arrive."""
        for session_id in self._last_seen:
            self._last_seen[session_id] = now

    def call_opened(self, session_id: str) -> None:
        """Count an open call of a session, which cannot become stale while the call is open."""
        self._open_calls[session_id] += 1

    def call_closed(self, session_id: str, now: float) -> None:
        """End an open call of a session, which counts as seen at `now`."""
        if session_id in self._open_calls:
            self._open_calls[session_id] -= 1
            if not self._open_calls[session_id]:
                del self._open_calls[session_id]
        if session_id in self._sessions:
            self.renew(session_id, now)

    @property
    def with_open_calls(self) -> list[str]:
        """The ids of the sessions that have open calls."""
        return list(self._open_calls)

    def unseen_for(self, session_id: str, now: float) -> float:
        """Seconds since a session was last seen; 0 while it has an open call."""
        return 0.0 if session_id in self._open_calls else max(0.0, now - self._last_seen[session_id])

    def stale(self, now: float, *, waiting_timeout: float, active_timeout: float) -> list[str]:
        """The ids of stale sessions: the active ones first, then the least recently seen. Timeouts are in seconds."""
        gone = [session_id for session_id in self._active if self.unseen_for(session_id, now) > active_timeout]
        while self._last_seen:
            session_id, seen = next(iter(self._last_seen.items()))
            if session_id not in self._open_calls or now - seen <= waiting_timeout:
                break
            self.renew(session_id, now)
        for session_id, seen in self._last_seen.items():
            if now - seen <= waiting_timeout:
                break
            if session_id not in self._open_calls and session_id not in self._active:
                gone.append(session_id)
        return gone

    def held_for(self, now: float) -> dict[str, float]:
        """Seconds since each active session became active, or since this server loaded it, by session id."""
        return {session_id: now - each.since for session_id, each in self._active.items()}


class _Active(NamedTuple):
    session: Session
    since: float


def _is_active(session: Session | None) -> bool:
    return session is not None and session.state is SessionState.ACTIVE


def _seat(session: Session) -> tuple[str, int]:
    return session.host or "", session.slot or 0


def _place(session: Session) -> _Place:
    return session.rank, session.number, session.session_id
