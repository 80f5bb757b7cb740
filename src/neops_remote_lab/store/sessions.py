"""Statements on sessions and on the host that they queue for."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import bindparam, delete, exists, func, select, text, update
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.core.codes import ENDED, EndCode, QuarantineSource, SessionState
from neops_remote_lab.store.database import Database
from neops_remote_lab.store.rows import EndedSession, Quarantine, Session
from neops_remote_lab.store.tables import LAB_HOST, SESSION, read, written

_COLUMNS = tuple(SESSION.c[field.name] for field in fields(Session))
_LIVE = SESSION.c.state.in_(SessionState)
_OF_HOST = SESSION.c.host == bindparam("of_host")
_QUARANTINED = (LAB_HOST.c.name == bindparam("of_host")) & LAB_HOST.c.quarantine_reason.is_not(None)

_LIVE_SESSIONS = select(*_COLUMNS).where(_OF_HOST, _LIVE).order_by(SESSION.c.number)
_NEXT = (
    select(SESSION.c.number)
    .where(_OF_HOST, SESSION.c.state == SessionState.WAITING)
    .order_by(SESSION.c.number)
    .limit(1)
)
_JOINING = sqlite_insert(SESSION)
_JOIN = _JOINING.on_conflict_do_update(
    index_elements=[SESSION.c.host, SESSION.c.idempotency_key],
    index_where=text("state IN ('waiting', 'active')"),
    set_={"last_seen_at": _JOINING.excluded.last_seen_at},
).returning(*_COLUMNS, SESSION.c.idempotency_key)
_JOIN_ALONE = """
    INSERT INTO session (session_id, host, state, client, purpose, idempotency_key, created_at, last_seen_at)
    VALUES (:session_id, :host, :state, :client, :purpose, :idempotency_key, :created_at, :last_seen_at)
    ON CONFLICT (host, idempotency_key) WHERE state IN ('waiting', 'active')
    DO UPDATE SET last_seen_at = excluded.last_seen_at
    RETURNING number, session_id, state, client, purpose, created_at, activated_at
"""
_ACTIVE = SESSION.alias("active")
_PROMOTE = (
    update(SESSION)
    .where(
        SESSION.c.number == _NEXT.scalar_subquery(),
        ~exists().where(_ACTIVE.c.host == bindparam("of_host"), _ACTIVE.c.state == SessionState.ACTIVE),
        ~exists().where(_QUARANTINED),
    )
    .values(state=SessionState.ACTIVE, activated_at=bindparam("now"))
    .returning(*_COLUMNS)
)
_END = (
    update(SESSION)
    .where(SESSION.c.session_id == bindparam("ending"), _LIVE)
    .values(
        state=ENDED,
        ended_at=bindparam("now"),
        end_code=bindparam("code"),
        end_detail=bindparam("detail"),
    )
    .returning(SESSION.c.number)
)
_RECORD_CONTACT = (
    update(SESSION).where(SESSION.c.session_id == bindparam("seen")).values(last_seen_at=bindparam("seen_at"))
)


def _session(number: int, session_id: str, state: str, *columns: Any) -> Session:
    return Session(number, session_id, SessionState(state), *columns)


@dataclass(frozen=True, slots=True)
class Joining:
    """Somebody who joins the queue."""

    session_id: str
    client: str | None
    purpose: str | None
    key: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """What an ending changed: who ended, and who became active in the same transaction."""

    ended: tuple[str, ...]
    promoted: Session | None


class SessionStore:
    """The queue of one host, as rows."""

    def __init__(self, database: Database, host: str) -> None:
        self._database = database
        self._host = host
        self._joining: list[tuple[Joining, asyncio.Future[Session]]] = []
        self._promote_joined = False
        self._flush: asyncio.Task[None] | None = None

    async def register_host(self, boot_id: str) -> str | None:
        """Note that this host serves; the identity of the boot that it served in before, if any."""

        async def work(connection: AsyncConnection) -> str | None:
            known = await connection.execute(select(LAB_HOST.c.boot_id).where(LAB_HOST.c.name == self._host))
            before = known.scalar_one_or_none()
            row = sqlite_insert(LAB_HOST).values(name=self._host, boot_id=boot_id)
            await connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"boot_id": boot_id}))
            return before

        return await self._database.write(work)

    async def live_sessions(self) -> list[Session]:
        """All who wait or are active, in FIFO order."""

        async def work(connection: AsyncConnection) -> list[Session]:
            rows = await connection.execute(_LIVE_SESSIONS, {"of_host": self._host})
            return [_session(*row) for row in rows]

        return await self._database.read(work)

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        """Append a session. A key of a live session gives that session instead. Durable when this returns.

        Those who join while a transaction is being written share the next one, so that they share its way to the disk.

        Args:
            joining: who joins.
            promote: make the head of the queue active, where nobody is.
        """
        answer: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._joining.append((joining, answer))
        self._promote_joined |= promote
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._write_joining())
        return await asyncio.shield(answer)

    async def _write_joining(self) -> None:
        while self._joining:
            batch, self._joining = self._joining, []
            promote, self._promote_joined = self._promote_joined, False
            try:
                joining = [one for one, _ in batch]
                if len(joining) == 1 and not promote:
                    sessions = [await self._append_one(joining[0])]
                else:
                    sessions = await self._database.write(partial(self._append, joining, promote))
            except Exception as error:  # noqa: BLE001 - it is raised where each of them waits
                for _, answer in batch:
                    answer.set_exception(error)
            else:
                for (_, answer), session in zip(batch, sessions, strict=True):
                    answer.set_result(session)

    async def _append(self, batch: list[Joining], promote: bool, connection: AsyncConnection) -> list[Session]:
        rows = [self._new_row(one) for one in batch]
        added = await connection.execute(_JOIN, rows)
        by_key = {row.idempotency_key or row.session_id: _session(*row[:-1]) for row in added}
        if promote and (promoted := await self._promote(connection, batch[-1].now)):
            by_key = {key: promoted if promoted.number == one.number else one for key, one in by_key.items()}
        return [by_key[one.key or one.session_id] for one in batch]

    async def _append_one(self, one: Joining) -> Session:
        """As `_append`, for somebody who joins alone, and waits."""
        row = self._new_row(one) | {"created_at": written(one.now), "last_seen_at": written(one.now)}
        (found,) = await self._database.run_statement(_JOIN_ALONE, row)
        number, session_id, state, client, purpose, created_at, activated_at = found
        since = read(activated_at) if activated_at else None
        return _session(number, session_id, state, client, purpose, read(created_at), since)

    def _new_row(self, one: Joining) -> dict[str, Any]:
        return {
            "session_id": one.session_id,
            "host": self._host,
            "state": SessionState.WAITING,
            "client": one.client,
            "purpose": one.purpose,
            "idempotency_key": one.key,
            "created_at": one.now,
            "last_seen_at": one.now,
        }

    async def end(self, session_ids: Iterable[str], code: EndCode, detail: str, now: datetime) -> Ending:
        """End live sessions and make the next one active, in one transaction."""

        async def work(connection: AsyncConnection) -> Ending:
            ended = []
            for session_id in session_ids:
                done = await connection.execute(
                    _END, {"ending": session_id, "now": now, "code": code, "detail": detail}
                )
                if done.one_or_none():
                    ended.append(session_id)
            return Ending(tuple(ended), await self._promote(connection, now))

        return await self._database.write(work)

    async def promote(self, now: datetime) -> Session | None:
        """Make the head of the queue active, where nobody is and the host is not quarantined."""
        return await self._database.write(lambda connection: self._promote(connection, now))

    async def _promote(self, connection: AsyncConnection, now: datetime) -> Session | None:
        row = (await connection.execute(_PROMOTE, {"of_host": self._host, "now": now})).one_or_none()
        return _session(*row) if row else None

    async def ended(self, session_id: str) -> EndedSession | None:
        """Why a session ended; None where no ended session of that id is known."""
        columns = (SESSION.c.end_code, SESSION.c.end_detail)
        query = select(*columns).where(SESSION.c.session_id == session_id, SESSION.c.state == ENDED)

        async def work(connection: AsyncConnection) -> EndedSession | None:
            row = (await connection.execute(query)).one_or_none()
            # What lacks a code was added by hand: the schema fills in what an update leaves out.
            return EndedSession(EndCode(row[0] or EndCode.OPERATOR), row[1] or "no reason was given") if row else None

        return await self._database.read(work)

    async def latest_holds(self, count: int = 20) -> list[float]:
        """For how many seconds the latest sessions were active, oldest first."""
        held = (func.julianday(SESSION.c.ended_at) - func.julianday(SESSION.c.activated_at)) * 86400
        query = select(held).where(SESSION.c.host == self._host, SESSION.c.activated_at.is_not(None))
        query = query.where(SESSION.c.state == ENDED, held >= 0).order_by(SESSION.c.ended_at.desc()).limit(count)

        async def work(connection: AsyncConnection) -> list[float]:
            return [float(seconds) for (seconds,) in await connection.execute(query)][::-1]

        return await self._database.read(work)

    async def record_last_seen(self, seen: dict[str, datetime]) -> None:
        """Write when each of these sessions was last heard of."""
        rows = [{"seen": session_id, "seen_at": seen_at} for session_id, seen_at in seen.items()]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_RECORD_CONTACT, rows)

        if rows:
            await self._database.write(work)

    async def quarantine(self) -> Quarantine | None:
        """Why no session is admitted; None where the host is sound."""
        return await self._database.read(self._quarantine)

    async def set_quarantine(self, reason: str | None, now: datetime) -> Quarantine | None:
        """Quarantine the host, or lift that with None; what is in force then: an operator's quarantine stays."""
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
        """Forget sessions that ended before a time; their number."""
        old = delete(SESSION).where(SESSION.c.state == ENDED, SESSION.c.ended_at < before)

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(old)).rowcount

        return await self._database.write(work)
