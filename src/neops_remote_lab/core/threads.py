"""Threads for blocking work, so that the event loop never waits for a file, a lock or a program."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread

RunBlocking = Callable[..., Awaitable[Any]]
"""Runs a blocking function with its arguments in a thread."""


def in_threads(count: int) -> RunBlocking:
    """Run blocking functions in at most `count` threads at a time."""
    limiter = anyio.CapacityLimiter(count)

    async def run_blocking(function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=limiter)

    return run_blocking
