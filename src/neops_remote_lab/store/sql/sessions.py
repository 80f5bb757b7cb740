"""SQL statements for sessions, their queue and their host.

Statements of the hot path are plain SQL, which the driver executes directly. The others use SQLAlchemy.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.core.codes import ENDED, EndCode, LiveLabState, QuarantineSource, SessionState
from neops_remote_lab.store.group_commit import JoinGroups
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import DEFAULT_QUEUE, EndedSession, Ending, Joining, Quarantine, Session
from neops_remote_lab.store.sql.database import SqlDatabase, Statement
from neops_remote_lab.store.sql.dialect import Dialect
from neops_remote_lab.store.sql.tables import EVENT, LAB, LAB_HOST, QUEUE, SESSION, SLOT, read

_COLUMNS: Final = (
    "session.number, session.rank, session.session_id, session.state, session.client, session.purpose, "
    "session.created_at, session.activated_at, session.host, session.slot"
)
_JOIN: Final = f"""
    INSERT INTO session (
        queue, rank, session_id, state, client, purpose, idempotency_key, created_at, last_seen_at
    )
    SELECT :queue, (SELECT last_rank FROM queue WHERE name = :queue) + 1 + position, session_id, 'waiting', client,
           purpose, idempotency_key, at, at
    FROM ({{joining}}) AS joining WHERE true ORDER BY position
    ON CONFLICT (queue, idempotency_key) WHERE idempotency_key IS NOT NULL AND state IN ('waiting', 'active')
    DO UPDATE SET last_seen_at = excluded.last_seen_at
    RETURNING {_COLUMNS}, session.idempotency_key
"""
PROMOTE: Final = f"""
    WITH free AS (
        SELECT slot.slot, row_number() OVER (ORDER BY slot.slot) AS place
        FROM slot JOIN lab_host ON lab_host.name = slot.host AND quarantine_reason IS NULL
        WHERE slot.host = :host AND is_open AND NOT EXISTS (
            SELECT 1 FROM session AS busy
            WHERE busy.host = slot.host AND busy.slot = slot.slot AND busy.state = 'active'
        )
    ), head AS (
        SELECT number AS next, row_number() OVER (ORDER BY rank, number) AS place FROM (
            SELECT number, rank FROM session WHERE queue = :queue AND state = 'waiting'
            ORDER BY rank, number LIMIT (SELECT count(*) FROM free)
        ) AS first
    )
    UPDATE session SET state = 'active', host = :host, slot = free.slot, activated_at = :now
    FROM head JOIN free USING (place) WHERE number = next
    RETURNING {_COLUMNS}
"""
_END: Final = """
    UPDATE session SET state = 'ended', ended_at = :now, end_code = :code, end_detail = :detail
    WHERE session_id IN ({ending}) AND state IN ('waiting', 'active')
    RETURNING session_id
"""
LIVE: Final = f"""
    SELECT {_COLUMNS} FROM session
    WHERE host = :host AND state = 'active' OR queue = :queue AND state = 'waiting'
    ORDER BY state, CASE state WHEN 'active' THEN slot END, rank, number
"""
_RECORD_LAST_SEEN = (
    update(SESSION).where(SESSION.c.session_id == bindparam("seen")).values(last_seen_at=bindparam("seen_at"))
)


class SqlSessionStore(SessionStore):
    """The sessions of one queue, and the lab host that serves it."""

    def __init__(self, database: SqlDatabase[Any], host: str, queue: str = DEFAULT_QUEUE) -> None:
        self._database = database
        self._host = host
        self._queue = queue
        self._groups = JoinGroups(self._append)
        self._join = join_statement(database.dialect)
        self._end = end_statement(database.dialect)

    async def register_host(self, boot_id: str, slots: int = 1) -> str | None:
        row = {"queue": self._queue, "boot_id": boot_id}
        offered = [{"host": self._host, "slot": slot, "is_open": True} for slot in range(1, slots + 1)]
        beyond = update(SLOT).where(SLOT.c.host == self._host, SLOT.c.slot > slots).values(is_open=False)

        async def work(connection: AsyncConnection) -> str | None:
            known = await connection.execute(select(LAB_HOST.c.boot_id).where(LAB_HOST.c.name == self._host))
            before = known.scalar_one_or_none()
            queue = self._database.dialect.insert(QUEUE).values(name=self._queue, last_rank=0)
            await connection.execute(queue.on_conflict_do_nothing())
            host = self._database.dialect.insert(LAB_HOST).values(name=self._host, **row)
            await connection.execute(host.on_conflict_do_update(index_elements=["name"], set_=row))
            slot = self._database.dialect.insert(SLOT)
            await connection.execute(
                slot.on_conflict_do_update(index_elements=["host", "slot"], set_={"is_open": True}), offered
            )
            await connection.execute(beyond)
            return before

        return await self._database.write(work)

    async def occupied_slots(self) -> list[int]:
        active = select(SESSION.c.slot).where(SESSION.c.host == self._host, SESSION.c.state == SessionState.ACTIVE)
        live = select(LAB.c.slot).where(LAB.c.host == self._host, LAB.c.state.in_(LiveLabState))

        async def work(connection: AsyncConnection) -> list[int]:
            rows = await connection.execute(active.union(live).order_by("slot"))
            return [slot for (slot,) in rows if slot is not None]

        return await self._database.read(work)

    async def live_sessions(self) -> list[Session]:
        [rows] = await self._database.run((LIVE, {"host": self._host, "queue": self._queue}))
        return [_session(row) for row in rows]

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        return await self._groups.join(joining, promote=promote)

    async def _append(self, group: Sequence[Joining], promote: bool) -> list[Session]:
        first = {one.key or one.session_id: one for one in reversed(group)}  # the first join with each key
        new = [one for one in group if first[one.key or one.session_id] is one]
        rows = [(one.session_id, one.client, one.purpose, one.key, one.now) for one in new]
        join = (self._join, {"queue": self._queue, "joining": rows})
        promotion = [self._promotion(group[-1].now)] if promote else []
        added, *promoted = await self._database.run(join, *promotion, queue=self._queue, shielded=False)
        found = {row[-1] or row[2]: _session(row[:-1]) for row in added}
        active = {session.number: session for rows in promoted for session in map(_session, rows)}
        sessions = [found[one.key or one.session_id] for one in group]
        return [active.get(session.number, session) for session in sessions]

    async def end(
        self, session_ids: Iterable[str], code: EndCode, detail: str, now: datetime, *, promote: bool = True
    ) -> Ending:
        asked = list(session_ids)
        end = {"ending": asked, "code": code, "detail": detail, "now": now}
        promotion = [self._promotion(now)] if promote else []
        ended, *granted = await self._database.run((self._end, end), *promotion, queue=self._queue)
        done = {session_id for (session_id,) in ended}
        return Ending(
            tuple(name for name in asked if name in done), _in_order([row for rows in granted for row in rows])
        )

    async def promote(self, now: datetime) -> tuple[Session, ...]:
        [promoted] = await self._database.run(self._promotion(now), queue=self._queue)
        return _in_order(promoted)

    def _promotion(self, now: datetime) -> Statement:
        return PROMOTE, {"queue": self._queue, "host": self._host, "now": now}

    async def ended(self, session_id: str) -> EndedSession | None:
        columns = (SESSION.c.end_code, SESSION.c.end_detail)
        query = select(*columns).where(SESSION.c.session_id == session_id, SESSION.c.state == ENDED)

        async def work(connection: AsyncConnection) -> EndedSession | None:
            row = (await connection.execute(query)).one_or_none()
            # A row without a code was inserted by hand: triggers fill in what an update leaves out.
            return EndedSession(EndCode(row[0] or EndCode.OPERATOR), row[1] or "no reason was given") if row else None

        return await self._database.read(work)

    async def latest_holds(self, count: int = 20) -> list[float]:
        query = select(SESSION.c.activated_at, SESSION.c.ended_at).where(SESSION.c.host == self._host)
        # A clock that was set back can make the end earlier.
        query = query.where(SESSION.c.state == ENDED, SESSION.c.ended_at >= SESSION.c.activated_at)
        query = query.order_by(SESSION.c.ended_at.desc()).limit(count)

        async def work(connection: AsyncConnection) -> list[float]:
            rows = await connection.execute(query)
            return [(ended_at - activated_at).total_seconds() for activated_at, ended_at in rows][::-1]

        return await self._database.read(work)

    async def record_last_seen(self, seen: Mapping[str, datetime]) -> None:
        rows = [{"seen": session_id, "seen_at": seen_at} for session_id, seen_at in seen.items()]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_RECORD_LAST_SEEN, rows)

        if rows:
            await self._database.write(work)

    async def quarantine(self) -> Quarantine | None:
        return await self._database.read(self._quarantine)

    async def set_quarantine(self, reason: str | None, now: datetime) -> Quarantine | None:
        source = None if reason is None else QuarantineSource.SERVER
        own = LAB_HOST.c.quarantined_by.is_distinct_from(QuarantineSource.OPERATOR)
        change = update(LAB_HOST).where(LAB_HOST.c.name == self._host, own)
        change = change.values(quarantined_by=source, quarantine_reason=reason, quarantined_at=now if reason else None)

        async def work(connection: AsyncConnection) -> Quarantine | None:
            await connection.execute(change)
            return await self._quarantine(connection)

        return await self._database.write(work)

    async def _quarantine(self, connection: AsyncConnection) -> Quarantine | None:
        columns = (LAB_HOST.c.quarantined_by, LAB_HOST.c.quarantine_reason)
        row = (await connection.execute(select(*columns).where(LAB_HOST.c.name == self._host))).one_or_none()
        if row is None or row[1] is None:
            return None
        return Quarantine(QuarantineSource(row[0] or QuarantineSource.OPERATOR), row[1])

    async def prune(self, before: datetime) -> int:
        old = delete(SESSION).where(SESSION.c.state == ENDED, SESSION.c.ended_at < before)
        # Event numbers grow with time, so no index on the time is needed, which would slow down every insert.
        first_kept = select(func.min(EVENT.c.number)).where(EVENT.c.at >= before).scalar_subquery()
        past = func.coalesce(first_kept, select(func.max(EVENT.c.number) + 1).scalar_subquery())

        async def work(connection: AsyncConnection) -> int:
            await connection.execute(delete(EVENT).where(EVENT.c.number < past))
            return (await connection.execute(old)).rowcount

        return await self._database.write(work)


def join_statement(dialect: Dialect) -> str:
    """The statement that appends sessions, or returns those that have the same keys already."""
    return _JOIN.format(joining=dialect.joining)


def end_statement(dialect: Dialect) -> str:
    """The statement that ends live sessions."""
    return _END.format(ending=dialect.ending)


def _session(row: Sequence[Any]) -> Session:
    number, rank, session_id, state, client, purpose, created_at, activated_at, host, slot = row
    since = read(activated_at) if activated_at else None
    return Session(number, rank, session_id, SessionState(state), client, purpose, read(created_at), since, host, slot)


def _in_order(promoted: Sequence[Sequence[Any]]) -> tuple[Session, ...]:
    """The sessions that became active, in FIFO order: RETURNING has no order."""
    return tuple(sorted(map(_session, promoted), key=lambda session: (session.rank, session.number)))
