"""SQL statements for sessions, their queue and their host.

Statements of the hot path are plain SQL, which the driver executes directly. The others use SQLAlchemy.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Update, and_, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.core.codes import (
    ENDED,
    EndCode,
    HostState,
    LiveLabState,
    OutcomeCode,
    QuarantineSource,
    SessionState,
)
from neops_remote_lab.store.group_commit import JoinGroups
from neops_remote_lab.store.protocol import SessionStore
from neops_remote_lab.store.rows import (
    DEFAULT_QUEUE,
    EndedSession,
    Ending,
    Host,
    Joining,
    Quarantine,
    Registration,
    Session,
)
from neops_remote_lab.store.sql.database import SqlDatabase, Statement
from neops_remote_lab.store.sql.dialect import Dialect
from neops_remote_lab.store.sql.fence import Fence
from neops_remote_lab.store.sql.tables import EVENT, LAB, LAB_HOST, LAB_REFERENCE, QUEUE, SESSION, SLOT, read

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
        SELECT slot.host, slot.slot, row_number() OVER (ORDER BY slot.slot, slot.host) AS place
        FROM lab_host JOIN slot ON slot.host = lab_host.name
        WHERE lab_host.queue = :queue AND lab_host.state = 'live' AND NOT is_draining AND NOT holds_grants
        AND quarantine_reason IS NULL AND is_open AND NOT EXISTS (
            SELECT 1 FROM session AS busy
            WHERE busy.host = slot.host AND busy.slot = slot.slot AND busy.state = 'active'
        )
    ), head AS (
        SELECT number AS next, row_number() OVER (ORDER BY rank, number) AS place FROM (
            SELECT number, rank FROM session WHERE queue = :queue AND state = 'waiting'
            ORDER BY rank, number LIMIT (SELECT count(*) FROM free)
        ) AS first
    )
    UPDATE session SET state = 'active', host = free.host, slot = free.slot, activated_at = :now
    FROM head JOIN free USING (place) WHERE number = next AND state = 'waiting'
    RETURNING {_COLUMNS}
"""
_END: Final = """
    UPDATE session SET state = 'ended', ended_at = :now, end_code = :code, end_detail = :detail
    WHERE {listed} AND state IN ('waiting', 'active')
    RETURNING session_id
"""
LIVE: Final = f"""
    SELECT {_COLUMNS} FROM session
    WHERE queue = :queue AND state = 'active' OR queue = :queue AND state = 'waiting'
    ORDER BY state, host, slot, rank, number
"""
LIVE_LISTED: Final = f"SELECT {_COLUMNS} FROM session WHERE {{listed}} AND queue = :queue AND state <> 'ended'"
_ENDINGS: Final = "SELECT session_id, end_code, end_detail FROM session WHERE {listed} AND state = 'ended'"
_BEAT: Final = "UPDATE lab_host SET beat = beat + 1 WHERE name = :host AND epoch = :epoch RETURNING beat"
_RECORD_LAST_SEEN: Final = """
    UPDATE session SET last_seen_at = seen.at FROM ({seen}) AS seen WHERE session.session_id = seen.session_id
"""


class SqlSessionStore(SessionStore):
    """The sessions of one queue, and the lab hosts that serve it. One of them is this host."""

    def __init__(self, database: SqlDatabase[Any], fence: Fence, host: str, queue: str = DEFAULT_QUEUE) -> None:
        self._database = database
        self._fence = fence
        self._host = host
        self._queue = queue
        self._groups = JoinGroups(self._append)
        self._join = join_statement(database.dialect)
        self._end = end_statement(database.dialect)
        self._live_listed = LIVE_LISTED.format(listed=database.dialect.listed)
        self._record_last_seen = _RECORD_LAST_SEEN.format(seen=database.dialect.seen)
        self._endings = _ENDINGS.format(listed=database.dialect.listed)

    async def register_host(self, registration: Registration) -> str | None:
        slots = registration.slots
        row: dict[str, Any] = {"queue": self._queue, "boot_id": registration.boot_id, "address": registration.address}
        row |= {"incarnation": registration.incarnation, "state": HostState.LIVE, "holds_grants": False}
        offered = [{"host": self._host, "slot": slot, "is_open": True} for slot in range(1, slots + 1)]
        beyond = update(SLOT).where(SLOT.c.host == self._host, SLOT.c.slot > slots).values(is_open=False)
        insert = self._database.dialect.insert
        host = insert(LAB_HOST).values(name=self._host, epoch=1, **row)
        again = row | {"epoch": LAB_HOST.c.epoch + 1, "beat": LAB_HOST.c.beat + 1}

        async def work(connection: AsyncConnection) -> tuple[str | None, int]:
            known = await connection.execute(select(LAB_HOST.c.boot_id).where(LAB_HOST.c.name == self._host))
            before = known.scalar_one_or_none()
            queue = insert(QUEUE).values(name=self._queue, last_rank=0)
            await connection.execute(queue.on_conflict_do_nothing())
            registered = host.on_conflict_do_update(index_elements=["name"], set_=again).returning(LAB_HOST.c.epoch)
            epoch = (await connection.execute(registered)).scalar_one()
            slot = insert(SLOT).on_conflict_do_update(index_elements=["host", "slot"], set_={"is_open": True})
            await connection.execute(slot, offered)
            await connection.execute(beyond)
            return before, epoch

        before, self._fence.epoch = await self._database.write(work)
        return before

    async def beat(self) -> bool:
        [rows] = await self._database.run((_BEAT, {"host": self._host, "epoch": self._fence.epoch}))
        return bool(rows)

    async def hosts(self) -> list[Host]:
        columns = (
            *(LAB_HOST.c.name, LAB_HOST.c.address, LAB_HOST.c.state, LAB_HOST.c.is_draining, LAB_HOST.c.holds_grants),
            *(LAB_HOST.c.epoch, LAB_HOST.c.incarnation, LAB_HOST.c.beat, LAB_HOST.c.quarantine_reason),
        )
        with_slots = LAB_HOST.outerjoin(SLOT, and_(SLOT.c.host == LAB_HOST.c.name, SLOT.c.is_open))
        query = select(*columns, SLOT.c.slot).select_from(with_slots).where(LAB_HOST.c.queue == self._queue)
        query = query.order_by(LAB_HOST.c.name, SLOT.c.slot)

        async def work(connection: AsyncConnection) -> list[Host]:
            open_slots: dict[tuple[Any, ...], list[int]] = {}
            for *host, slot in await connection.execute(query):
                open_slots.setdefault(tuple(host), []).extend([] if slot is None else [slot])
            return [
                Host(name, address, HostState(state), tuple(slots), *rest)
                for (name, address, state, *rest), slots in open_slots.items()
            ]

        return await self._database.read(work)

    async def declare(self, host: Host, state: HostState, now: datetime) -> bool:
        unchanged = (LAB_HOST.c.name == host.name, LAB_HOST.c.epoch == host.epoch, LAB_HOST.c.beat == host.beat)
        fence = update(LAB_HOST).where(*unchanged).values(state=state, epoch=LAB_HOST.c.epoch + 1)

        async def work(connection: AsyncConnection) -> bool:
            await connection.execute(select(QUEUE.c.name).where(QUEUE.c.name == self._queue).with_for_update())
            if not (await connection.execute(fence)).rowcount:
                return False
            for statement in _lost(host.name, now) if state is HostState.GONE else _requeued(host.name):
                await connection.execute(statement)
            return True

        return await self._database.write(work)

    async def occupied_slots(self) -> list[int]:
        active = select(SESSION.c.slot).where(SESSION.c.host == self._host, SESSION.c.state == SessionState.ACTIVE)
        live = select(LAB.c.slot).where(LAB.c.host == self._host, LAB.c.state.in_(LiveLabState))

        async def work(connection: AsyncConnection) -> list[int]:
            rows = await connection.execute(active.union(live).order_by("slot"))
            return [slot for (slot,) in rows if slot is not None]

        return await self._database.read(work)

    async def live_sessions(self, session_ids: Collection[str] | None = None) -> list[Session]:
        if session_ids is None:
            [rows] = await self._database.run((LIVE, {"queue": self._queue}))
        else:
            listed = {"queue": self._queue, "session_ids": list(session_ids)}
            [rows] = await self._database.run((self._live_listed, listed))
        return [_session(row) for row in rows]

    async def last_seen(self) -> dict[str, datetime]:
        query = select(SESSION.c.session_id, SESSION.c.last_seen_at)
        query = query.where(SESSION.c.queue == self._queue, SESSION.c.state.in_(SessionState))

        async def work(connection: AsyncConnection) -> dict[str, datetime]:
            return {row[0]: row[1] for row in await connection.execute(query)}

        return await self._database.read(work)

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

    async def end(self, session_ids: Iterable[str], code: EndCode, detail: str, now: datetime) -> Ending:
        asked = list(session_ids)
        end = {"session_ids": asked, "code": code, "detail": detail, "now": now}
        ended, promoted = await self._database.run((self._end, end), self._promotion(now), queue=self._queue)
        done = {session_id for (session_id,) in ended}
        return Ending(tuple(name for name in asked if name in done), _in_order(promoted))

    async def promote(self, now: datetime) -> tuple[Session, ...]:
        [promoted] = await self._database.run(self._promotion(now), queue=self._queue)
        return _in_order(promoted)

    def _promotion(self, now: datetime) -> Statement:
        return PROMOTE, {"queue": self._queue, "now": now}

    async def ended(self, session_id: str) -> EndedSession | None:
        return (await self.endings([session_id])).get(session_id)

    async def endings(self, session_ids: Collection[str]) -> dict[str, EndedSession]:
        [rows] = await self._database.run((self._endings, {"session_ids": list(session_ids)}))
        # A row without a code was inserted by hand: triggers fill in what an update leaves out.
        return {
            session_id: EndedSession(EndCode(code or EndCode.OPERATOR), detail or "no reason was given")
            for session_id, code, detail in rows
        }

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
        if seen:
            await self._database.run((self._record_last_seen, {"seen": [*seen.items()]}))

    async def quarantine(self) -> Quarantine | None:
        return await self._database.read(self._quarantine)

    async def set_quarantine(self, reason: str | None, now: datetime) -> Quarantine | None:
        source = None if reason is None else QuarantineSource.SERVER
        own = LAB_HOST.c.quarantined_by.is_distinct_from(QuarantineSource.OPERATOR)
        change = update(LAB_HOST).where(LAB_HOST.c.name == self._host, own)
        change = change.values(quarantined_by=source, quarantine_reason=reason, quarantined_at=now if reason else None)

        async def work(connection: AsyncConnection) -> Quarantine | None:
            await self._fence.check(connection)
            await connection.execute(change)
            return await self._quarantine(connection)

        return await self._database.write(work)

    async def _quarantine(self, connection: AsyncConnection) -> Quarantine | None:
        columns = (LAB_HOST.c.quarantined_by, LAB_HOST.c.quarantine_reason)
        row = (await connection.execute(select(*columns).where(LAB_HOST.c.name == self._host))).one_or_none()
        if row is None or row[1] is None:
            return None
        return Quarantine(QuarantineSource(row[0] or QuarantineSource.OPERATOR), row[1])

    async def hold_grants(self, *, on: bool) -> None:
        change = update(LAB_HOST).where(LAB_HOST.c.name == self._host).values(holds_grants=on)

        async def work(connection: AsyncConnection) -> None:
            await self._fence.check(connection)
            await connection.execute(change)

        await self._database.write(work)

    async def prune(self, before: datetime) -> int:
        old = delete(SESSION).where(SESSION.c.state == ENDED, SESSION.c.ended_at < before)
        # Event numbers grow with time, so no index on the time is needed, which would slow down every insert.
        first_kept = select(func.min(EVENT.c.number)).where(EVENT.c.at >= before).scalar_subquery()
        past = func.coalesce(first_kept, select(func.max(EVENT.c.number) + 1).scalar_subquery())

        async def work(connection: AsyncConnection) -> int:
            await connection.execute(delete(EVENT).where(EVENT.c.number < past))
            return (await connection.execute(old)).rowcount

        return await self._database.write(work)


def _requeued(host: str) -> list[Update]:
    """The statements that let the active sessions of a host that have no lab wait again."""
    with_lab = select(LAB.c.session_id).where(LAB.c.host == host, LAB.c.state.in_(LiveLabState))
    active = update(SESSION).where(SESSION.c.host == host, SESSION.c.state == SessionState.ACTIVE)
    return [active.where(SESSION.c.session_id.not_in(with_lab)).values(state=SessionState.WAITING)]


def _lost(host: str, now: datetime) -> list[Update]:
    """The statements that end the active sessions of a host, and its labs."""
    labs = (LAB.c.host == host, LAB.c.state.in_(LiveLabState))
    held = update(LAB_REFERENCE).where(
        LAB_REFERENCE.c.lab_id.in_(select(LAB.c.lab_id).where(*labs)), LAB_REFERENCE.c.released_at.is_(None)
    )
    lost = {
        "outcome_code": OutcomeCode.LOST,
        "outcome_detail": EndCode.HOST_GONE.message,
        "ended_at": now,
        "devices": None,
    }
    ended = {"end_code": EndCode.HOST_GONE, "end_detail": EndCode.HOST_GONE.message, "ended_at": now}
    active = update(SESSION).where(SESSION.c.host == host, SESSION.c.state == SessionState.ACTIVE)
    return [
        held.values(released_at=now),
        update(LAB).where(*labs).values(state=ENDED, **lost),
        active.values(state=ENDED, **ended),
    ]


def join_statement(dialect: Dialect) -> str:
    """The statement that appends sessions, or returns those that have the same keys already."""
    return _JOIN.format(joining=dialect.joining)


def end_statement(dialect: Dialect) -> str:
    """The statement that ends live sessions."""
    return _END.format(listed=dialect.listed)


def _session(row: Sequence[Any]) -> Session:
    number, rank, session_id, state, client, purpose, created_at, activated_at, host, slot = row
    since = read(activated_at) if activated_at else None
    return Session(number, rank, session_id, SessionState(state), client, purpose, read(created_at), since, host, slot)


def _in_order(promoted: Sequence[Sequence[Any]]) -> tuple[Session, ...]:
    """The sessions that became active, in FIFO order: RETURNING has no order."""
    return tuple(sorted(map(_session, promoted), key=lambda session: (session.rank, session.number)))
