"""The calls that reach into a running lab, and their end when the lab ends."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto


class Cut(Enum):
    """Why a call that reaches into a lab is ended by the server."""

    LAB_ENDED = auto()
    """The lab is torn down, because its last reference was released or its session ended, for example."""
    SERVER_ENDS = auto()


class TooMany(BlockingIOError):
    """No more connections are taken; the message says whose limit is reached."""


@dataclass(eq=False)
class LabAccess:
    """One such call."""

    session_id: str
    lab_id: str
    cut: "asyncio.Future[Cut]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done once the call is to be ended."""


class LabAccesses:
    """The calls that are open."""

    def __init__(self) -> None:
        self._open: set[LabAccess] = set()
        self._connections: Counter[str] = Counter()

    @contextmanager
    def open(self, session_id: str, lab_id: str) -> Iterator[LabAccess]:
        """Be one of them."""
        access = LabAccess(session_id, lab_id)
        self._open.add(access)
        try:
            yield access
        finally:
            self._open.discard(access)
            access.cut.cancel()

    @contextmanager
    def connection(self, session_id: str, *, most: int, most_of_session: int) -> Iterator[None]:
        """Be one of the connections. Raises TooMany."""
        if self._connections[session_id] >= most_of_session:
            raise TooMany(f"the session has {most_of_session} connections to its devices already")
        if self._connections.total() >= most:
            raise TooMany(f"the server has {most} connections to devices already")
        self._connections[session_id] += 1
        try:
            yield
        finally:
            self._connections[session_id] -= 1
            self._connections += Counter()  # drops those at zero

    def end(self, lab_id: str) -> None:
        """End those of a lab."""
        self._cut({access for access in self._open if access.lab_id == lab_id}, Cut.LAB_ENDED)

    def drain(self) -> None:
        """End all of them, because the server is shutting down."""
        self._cut(self._open, Cut.SERVER_ENDS)

    def _cut(self, accesses: set[LabAccess], why: Cut) -> None:
        for access in accesses:
            if not access.cut.done():
                access.cut.set_result(why)
