"""Server-sent events, as `GET /lab/log` sends them."""

from collections.abc import Iterable, Iterator
from typing import Final

import httpx

ACCEPT: Final = {"Accept": "text/event-stream"}
"""Headers that ask for events."""
END: Final = "end"
"""The type of the event after which none follows; its data says why, where that is worth saying."""


def events_of(answer: httpx.Response) -> Iterator[tuple[str, str]]:
    """Type and data of each event of a streamed answer, as it comes; comments are left out."""
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
    """Lines that end in LF. httpx would end them at other characters too, which a log may have."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
