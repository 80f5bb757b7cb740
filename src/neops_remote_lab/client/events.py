"""Parses server-sent events of `GET /lab/log`."""

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import httpx

ACCEPT: Final = {"Accept": "text/event-stream"}
"""Request headers for events."""
END: Final = "end"
"""The type of the last event. Its data says why the stream ends, or is empty."""


class Event(NamedTuple):
    """A server-sent event.

    Attributes:
        kind: its type.
        data: its data.
        id: its id; empty if it has none.
    """

    kind: str
    data: str
    id: str = ""


def events_of(answer: httpx.Response) -> Iterator[Event]:
    """The events of a streaming response. Comments are skipped."""
    kind, data, event_id = "message", list[str](), ""
    for line in _lines(answer.iter_bytes()):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "id":
            event_id = value
        elif name == "data":
            data.append(value)
        elif not line and (data or kind != "message"):
            yield Event(kind, "\n".join(data), event_id)
            kind, data, event_id = "message", [], ""


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Lines that end in LF. httpx would also split at other characters, which a log may contain."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
