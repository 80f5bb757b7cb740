"""Joins that arrive while a transaction is being written share the next one, and its way to the disk."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from neops_remote_lab.store.rows import Joining, Session

Append: TypeAlias = Callable[[Sequence[Joining], bool], Awaitable[Sequence[Session]]]
"""Appends sessions in one transaction, and makes the head of the queue active where the flag says so; the sessions, in
the order of those who join."""


class JoinGroups:
    """Collects joins, and writes those that have come together."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._joining: list[tuple[Joining, asyncio.Future[Session]]] = []
        self._promote = False
        self._flush: asyncio.Task[None] | None = None

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        """The session, once it is durable. What a cancelled caller began is written all the same."""
        answer: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._joining.append((joining, answer))
        self._promote |= promote
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._write())
        return await answer

    async def _write(self) -> None:
        while self._joining:
            group, self._joining = self._joining, []
            promote, self._promote = self._promote, False
            try:
                sessions = await self._append([joining for joining, _ in group], promote)
            except Exception as error:  # noqa: BLE001 - it is raised where each of them waits
                for _, answer in group:
                    if not answer.cancelled():
                        answer.set_exception(error)
            else:
                for (_, answer), session in zip(group, sessions, strict=True):
                    if not answer.cancelled():
                        answer.set_result(session)
