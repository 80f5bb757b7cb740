"""Tracks calls that access devices of a running lab, and ends them with the lab."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto


class Cut(Enum):
    """Why the server ends an access."""

    LAB_ENDED = auto()
    """The lab is being torn down, for example because its last reference was released."""
    SERVER_ENDS = auto()


class TooMany(BlockingIOError):
    """A limit on the number of connections is reached; the message names it."""


@dataclass(eq=False)
class LabAccess:
    """A call that accesses a device."""

    session_id: str
    lab_id: str
    cut: "asyncio.Future[Cut]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when the call must end."""


class LabAccesses:
    """All open accesses."""

    def __init__(self) -> None:
        self._open: set[LabAccess] = set()
        self._connections: Counter[str] = Counter()

    @contextmanager
    def open(self, session_id: str, lab_id: str) -> Iterator[LabAccess]:
        """A context for one access."""
        access = LabAccess(session_id, lab_id)
        self._open.add(access)
        try:
            yield access
        finally:
            self._open.discard(access)
            access.cut.cancel()

    @contextmanager
    def connection(self, session_id: str, *, most: int, most_of_session: int) -> Iterator[None]:
        """A context that counts as one connection. Raises TooMany if a limit is reached.

        Args:
            most: maximum number of connections of all sessions.
            most_of_session: maximum number of connections of this session.
        """
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
        """End all accesses to a lab."""
        self._cut({access for access in self._open if access.lab_id == lab_id}, Cut.LAB_ENDED)

    def drain(self) -> None:
        """End all accesses, because the server is shutting down."""
        self._cut(self._open, Cut.SERVER_ENDS)

    def _cut(self, accesses: set[LabAccess], why: Cut) -> None:
        for access in accesses:
            if not access.cut.done():
                access.cut.set_result(why)
