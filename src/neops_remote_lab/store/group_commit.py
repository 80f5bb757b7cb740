"""Group commit: joins that arrive during a transaction share the next one, and so its disk flush."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from neops_remote_lab.store.rows import Joining, Session

Append: TypeAlias = Callable[[Sequence[Joining], bool], Awaitable[Sequence[Session]]]
"""Appends sessions in one transaction, and makes waiting sessions active if the flag is set. Returns the sessions in
the order of the joins."""


class JoinGroups:
    """Collects joins and writes them in groups."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._joining: list[tuple[Joining, asyncio.Future[Session]]] = []
        self._promote = False
        self._flush: asyncio.Task[None] | None = None

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        """Append a session and return it when it is durable. Cancelling the caller does not cancel the write."""
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
            except Exception as error:  # noqa: BLE001 - raised in each caller of `join`
                for _, answer in group:
                    if not answer.cancelled():
                        answer.set_exception(error)
            else:
                for (_, answer), session in zip(group, sessions, strict=True):
                    if not answer.cancelled():
                        answer.set_result(session)
