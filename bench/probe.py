"""Status calls at a constant rate from a separate process, so that other work of the benchmark does not delay them."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Final, TypeVar

from bench import load
from bench.load import Connection, request

T = TypeVar("T")

PACE: Final = 0.005
"""Seconds between two calls."""
LONGEST: Final = 120.0
"""Maximum seconds for which a probe sends calls."""
MARGIN: Final = 0.3
"""Seconds of calls before and after the measured work."""

_over: Event


class Probe:
    """The process that sends the calls."""

    def __init__(self, pool: ProcessPoolExecutor, over: Event, port: int, session: str) -> None:
        self._pool = pool
        self._over = over
        self._port = port
        self._session = session

    def during(self, work: Callable[[], T]) -> tuple[float, T]:
        """Do some work. Returns the seconds of the longest call meanwhile, and the result of the work."""
        self._over.clear()
        longest = self._pool.submit(_call, self._port, self._session)
        time.sleep(MARGIN)
        try:
            result = work()
            time.sleep(MARGIN)
        finally:
            self._over.set()
        return longest.result(), result


@contextmanager
def probing(port: int, session: str) -> Iterator[Probe]:
    """A probe that requests the status of a session."""
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    with ProcessPoolExecutor(1, context, _set_over, (over,)) as pool:
        pool.submit(time.monotonic).result()  # the process has started
        yield Probe(pool, over, port, session)


def _set_over(over: Event) -> None:
    global _over  # noqa: PLW0603 - an initializer can pass objects to later calls only as globals
    _over = over


def _call(port: int, session: str) -> float:
    return load.run(lambda: _calls(port, session), LONGEST + 10)


async def _calls(port: int, session: str) -> float:
    connection, asked = await Connection(port).open(), request("GET", f"/session/{session}", session)
    longest, began = 0.0, time.perf_counter()
    while not _over.is_set() and (sent := time.perf_counter()) - began < LONGEST:
        (await connection.call(asked)).expect(200)
        took = time.perf_counter() - sent
        longest = max(longest, took)
        await asyncio.sleep(max(0.0, PACE - took))
    connection.close()
    return longest
