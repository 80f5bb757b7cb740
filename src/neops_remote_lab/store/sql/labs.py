"""SQL statements for labs and their references."""

from collections.abc import Awaitable, Callable
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Update, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.core.codes import ENDED, LiveLabState, OutcomeCode, SessionState
from neops_remote_lab.store.protocol import Fenced, LabStore
from neops_remote_lab.store.rows import FIRST_SLOT, EndedLab, KeyedReference, Lab
from neops_remote_lab.store.sql.database import SqlDatabase
from neops_remote_lab.store.sql.fence import Fence
from neops_remote_lab.store.sql.tables import LAB, LAB_REFERENCE, SESSION

T = TypeVar("T")

_COLUMNS = tuple(LAB.c[field.name] for field in fields(Lab))
_HELD = LAB_REFERENCE.c.released_at.is_(None)


class SqlLabStore(LabStore):
    """The labs of one slot of a host. At most one is live."""

    def __init__(self, database: SqlDatabase[Any], fence: Fence, host: str, slot: int = FIRST_SLOT) -> None:
        self._database = database
        self._fence = fence
        self._host = host
        self._slot = slot

    async def live_lab(self) -> Lab | None:
        of_slot = (LAB.c.host == self._host, LAB.c.slot == self._slot)
        query = select(*_COLUMNS).where(*of_slot, LAB.c.state.in_(LiveLabState))

        async def work(connection: AsyncConnection) -> Lab | None:
            row = (await connection.execute(query)).one_or_none()
            return _lab(*row) if row else None

        return await self._database.read(work)

    async def starting(self, lab: Lab, now: datetime, *, in_advance: bool = False) -> None:
        row = {field.name: getattr(lab, field.name) for field in fields(Lab)}
        row |= {"host": self._host, "slot": self._slot, "started_at": now, "state": LiveLabState.STARTING}

        async def work(connection: AsyncConnection) -> None:
            await self._require_session(connection, lab.session_id, in_advance=in_advance)
            await connection.execute(insert(LAB).values(row))

        await self._write(work)

    async def _require_session(self, connection: AsyncConnection, session_id: str, *, in_advance: bool) -> None:
        """Raise `Fenced` if the session lost its slot while the host was silent. One that has ended is not refused."""
        query = select(SESSION.c.state, SESSION.c.host).where(SESSION.c.session_id == session_id)
        match (await connection.execute(query.with_for_update(read=True))).one_or_none():
            case (SessionState.WAITING, _) if not in_advance:
                raise Fenced("the session waits again, because this lab host was silent")
            case (SessionState.ACTIVE, host) if host != self._host:
                raise Fenced(f"the session is active on another lab host ({host})")

    async def running(
        self, lab_id: str, devices: list[dict[str, Any]], now: datetime, lab_number: int | None = None
    ) -> None:
        row = {"state": LiveLabState.RUNNING, "devices": devices, "running_at": now, "lab_number": lab_number}

        async def work(connection: AsyncConnection) -> None:
            await _require_live(connection, lab_id)
            await connection.execute(_live(lab_id).values(row))

        await self._write(work)

    async def stopping(self, lab_id: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(_stopping(lab_id))

        await self._write(work)

    async def ended(self, lab_id: str, code: OutcomeCode, detail: str, now: datetime) -> None:
        end = {"state": ENDED, "outcome_code": code, "outcome_detail": detail, "ended_at": now, "devices": None}

        async def work(connection: AsyncConnection) -> None:
            held = update(LAB_REFERENCE).where(LAB_REFERENCE.c.lab_id == lab_id, _HELD)
            await connection.execute(held.values(released_at=now))
            await connection.execute(_live(lab_id).values(end))

        await self._write(work)

    async def last_ended(self, session_id: str) -> EndedLab | None:
        columns = (LAB.c.lab_id, LAB.c.outcome_code, LAB.c.outcome_detail)
        query = select(*columns).where(LAB.c.session_id == session_id).order_by(LAB.c.number.desc()).limit(1)

        async def work(connection: AsyncConnection) -> EndedLab | None:
            row = (await connection.execute(query)).one_or_none()
            return EndedLab(row[0], OutcomeCode(row[1]), row[2] or row[1]) if row and row[1] else None

        return await self._database.read(work)

    async def add_reference(self, lab_id: str, session_id: str, key: str | None, now: datetime) -> int:
        row = {"lab_id": lab_id, "session_id": session_id, "idempotency_key": key, "acquired_at": now}

        async def work(connection: AsyncConnection) -> int:
            await _require_live(connection, lab_id)
            await connection.execute(insert(LAB_REFERENCE).values(row))
            return await _held_references(connection, lab_id)

        return await self._write(work)

    async def reference_by_key(self, session_id: str, key: str) -> KeyedReference | None:
        query = (
            select(LAB_REFERENCE.c.lab_id, _HELD, LAB.c.outcome_code)
            .join(LAB, LAB.c.lab_id == LAB_REFERENCE.c.lab_id)
            .where(LAB_REFERENCE.c.session_id == session_id, LAB_REFERENCE.c.idempotency_key == key)
            .order_by(LAB_REFERENCE.c.number.desc())
            .limit(1)
        )

        async def work(connection: AsyncConnection) -> KeyedReference | None:
            row = (await connection.execute(query)).one_or_none()
            return KeyedReference(row[0], bool(row[1]), OutcomeCode(row[2]) if row[2] else None) if row else None

        return await self._database.read(work)

    async def release_reference(self, lab_id: str, key: str | None, now: datetime) -> int:
        held = [LAB_REFERENCE.c.lab_id == lab_id, _HELD]
        chosen = select(func.max(LAB_REFERENCE.c.number)).where(*held)
        if key is not None:
            chosen = chosen.where(LAB_REFERENCE.c.idempotency_key == key)

        async def work(connection: AsyncConnection) -> int:
            release = update(LAB_REFERENCE).where(LAB_REFERENCE.c.number == chosen.scalar_subquery())
            await connection.execute(release.values(released_at=now))
            left = await _held_references(connection, lab_id)
            if not left:
                await connection.execute(_stopping(lab_id))
            return left

        return await self._write(work)

    async def held_references(self, lab_id: str) -> int:
        return await self._database.read(lambda connection: _held_references(connection, lab_id))

    async def prune(self, before: datetime) -> int:
        old = delete(LAB).where(LAB.c.state == ENDED, LAB.c.ended_at < before)

        async def work(connection: AsyncConnection) -> int:
            return (await connection.execute(old)).rowcount

        return await self._database.write(work)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def fenced(connection: AsyncConnection) -> T:
            await self._fence.check(connection)
            return await work(connection)

        return await self._database.write(fenced)


def _lab(lab_id: str, session_id: str, state: str, *columns: Any) -> Lab:
    return Lab(lab_id, session_id, LiveLabState(state), *columns)


def _live(lab_id: str) -> Update:
    return update(LAB).where(LAB.c.lab_id == lab_id, LAB.c.state != ENDED)


def _stopping(lab_id: str) -> Update:
    return _live(lab_id).values(state=LiveLabState.STOPPING)


async def _require_live(connection: AsyncConnection, lab_id: str) -> None:
    """Raise `Fenced` if others have ended the lab. After the check of the fence they cannot do so any more."""
    query = select(LAB.c.state).where(LAB.c.lab_id == lab_id, LAB.c.state != ENDED)
    if (await connection.execute(query)).one_or_none() is None:
        raise Fenced("the lab has ended, because this lab host was silent for too long")


async def _held_references(connection: AsyncConnection, lab_id: str) -> int:
    query = select(func.count()).where(LAB_REFERENCE.c.lab_id == lab_id, _HELD)
    return int((await connection.execute(query)).scalar_one())
