"""Keeps a server from writing for its host after others have declared the host silent or gone."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.store.protocol import Fenced
from neops_remote_lab.store.sql.tables import LAB_HOST


class Fence:
    """The epoch in which this server serves its host; 0 before the host is registered.

    It is shared by all stores of the host.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self.epoch = 0

    async def check(self, connection: AsyncConnection) -> None:
        """Keep the epoch from ending until the transaction ends. Raises `Fenced` if it has ended."""
        if not self.epoch:
            return
        # FOR SHARE, where the database has it: the transaction that ends the epoch waits for this one
        query = select(LAB_HOST.c.epoch).where(LAB_HOST.c.name == self._host).with_for_update(read=True)
        if (await connection.execute(query)).scalar_one_or_none() != self.epoch:
            raise Fenced("other servers of the queue have declared this lab host silent; it registers anew")
