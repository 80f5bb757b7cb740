"""Parses server-sent events of `GET /lab/log`."""

from collections.abc import Iterable, Iterator
from typing import Final

import httpx

ACCEPT: Final = {"Accept": "text/event-stream"}
"""Request headers for events."""
END: Final = "end"
"""The type of the last event. Its data says why the stream ends, or is empty."""


def events_of(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """Type and data of each event of a streaming response. Comments are skipped."""
    event, data = "message", list[str]()
    for line in _lines(answer.iter_bytes()):
        name, _, value = line.partition(":")
        if name == "event":
            event = value.removeprefix(" ")
        elif name == "data":
            data.append(value.removeprefix(" "))
        elif not line and (data or event != "message"):
            yield event, "\n".join(data)
            event, data = "message", []


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Lines that end in LF. httpx would also split at other characters, which a log may contain."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
