"""A lab's log, as a whole or as it grows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from neops_remote_lab.netlab.output import scrub
from neops_remote_lab.uploads import RunBlocking

MAX_LOG_BYTES: Final = 8 << 20
"""So much of a log's end is told in one answer."""
CHUNK_BYTES: Final = 256 * 1024
LOOK_EVERY: Final = 0.25
"""Seconds between two looks at a log that grows."""
KEEP_ALIVE_EVERY: Final = 15.0
"""Seconds without a line after which a comment keeps proxies from closing the connection."""


def read_log(log: Path) -> str:
    """What netlab has printed so far, or its last 8 MiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
            return scrub(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ""


async def follow(log: Path, run_blocking: RunBlocking, lives: Callable[[], bool]) -> AsyncIterator[str]:
    """Server-sent events: a `message` for each line, printed before or from now on, then `end` when the lab is gone."""
    position, rest, silent = 0, b"", 0.0
    while True:
        goes_on = lives()  # asked before reading: what was printed up to the end is still told
        data: bytes = await run_blocking(_read_from, log, position)
        position += len(data)
        *lines, rest = (rest + data).split(b"\n")
        if lines:
            silent = 0.0
            yield "".join(f"data: {line}\n\n" for line in scrub(b"\n".join(lines).decode(errors="replace")).split("\n"))
        if not goes_on and not data:
            break
        if not data:
            silent += LOOK_EVERY
            await asyncio.sleep(LOOK_EVERY)
        if silent >= KEEP_ALIVE_EVERY:
            silent = 0.0
            yield ": still here\n\n"
    yield "event: end\ndata:\n\n"


def _read_from(log: Path, position: int) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""
