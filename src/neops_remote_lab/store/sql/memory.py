"""SQL statements for the memory that labs used."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.core.identity import Identity
from neops_remote_lab.store.protocol import MemoryStore
from neops_remote_lab.store.sql.database import SqlDatabase
from neops_remote_lab.store.sql.tables import LAB, NODE_MEMORY

LATEST: Final = 200
"""Number of measurements per image that an estimate is made from."""
PERCENTILE: Final = 0.95


class SqlMemoryStore(MemoryStore):
    """How much memory labs used."""

    def __init__(self, database: SqlDatabase[Any]) -> None:
        self._database = database

    async def record(self, lab_id: str, used: int, nodes: Sequence[tuple[str, int]], now: datetime) -> None:
        rows = [{"image": image, "bytes": size, "measured_at": now} for image, size in nodes]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(update(LAB).where(LAB.c.lab_id == lab_id).values(memory_bytes=used))
            if rows:
                await connection.execute(insert(NODE_MEMORY), rows)

        await self._database.write(work)

    async def of_topology(self, identity: Identity) -> int | None:
        query = select(func.max(LAB.c.memory_bytes)).where(
            LAB.c.topology_sha256 == identity.topology, LAB.c.extra_sha256.is_not_distinct_from(identity.extra)
        )

        async def work(connection: AsyncConnection) -> int | None:
            highest: int | None = (await connection.execute(query)).scalar_one()
            return highest

        return await self._database.read(work)

    async def of_images(self, images: Iterable[str]) -> dict[str, int]:
        newest = func.row_number().over(partition_by=NODE_MEMORY.c.image, order_by=NODE_MEMORY.c.number.desc())
        known = select(NODE_MEMORY.c.image, NODE_MEMORY.c.bytes, newest.label("age"))
        latest = known.where(NODE_MEMORY.c.image.in_(list(images))).subquery()
        part = func.cume_dist().over(partition_by=latest.c.image, order_by=latest.c.bytes)
        ranked = select(latest.c.image, latest.c.bytes, part.label("part")).where(latest.c.age <= LATEST).subquery()
        query = select(ranked.c.image, func.min(ranked.c.bytes)).where(ranked.c.part >= PERCENTILE)

        async def work(connection: AsyncConnection) -> dict[str, int]:
            rows = await connection.execute(query.group_by(ranked.c.image))
            return {row[0]: row[1] for row in rows}

        return await self._database.read(work)

    async def prune(self, before: datetime) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(delete(NODE_MEMORY).where(NODE_MEMORY.c.measured_at < before))

        await self._database.write(work)
