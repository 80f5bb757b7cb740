"""Threads for blocking work, so that the event loop never waits for a file, a lock or a process."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a blocking function with its arguments in a thread."""


def in_threads(count: int) -> RunBlocking:
    """A runner with a limit of its own: at most `count` of its functions run at a time, the others wait."""
    limiter = anyio.CapacityLimiter(count)

    async def run_blocking(function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)

    return run_blocking
