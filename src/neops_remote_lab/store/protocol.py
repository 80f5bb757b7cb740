"""What the queue and the labs ask of a store, as verbs of their own field.

Each call is one transaction: all of it is durable when the call returns, or nothing is. A caller that is cancelled
leaves a whole transaction behind. Any call raises `DatabaseError` where the database cannot be used. What must hold for
each implementation is tested in `tests/conformance`.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol

from neops_remote_lab.core.codes import EndCode, OutcomeCode
from neops_remote_lab.store.rows import (
    EndedLab,
    EndedSession,
    Ending,
    Joining,
    KeyedReference,
    Lab,
    Quarantine,
    Session,
)


class DatabaseError(Exception):
    """The database cannot be used, or refuses what would break one of its rules; the text is its own."""


class Database(Protocol):
    """The connection to the database, and its upkeep."""

    @property
    def log_bytes(self) -> int:
        """Bytes of the write-ahead log when it was last measured."""

    async def data_version(self) -> int:
        """A number that changes when another program has changed the database, and with nothing of our own."""

    async def measure_log(self) -> int:
        """Bytes of the write-ahead log, which `log_bytes` remembers."""

    async def shrink_log(self) -> bool:
        """Cut the write-ahead log off; False where another program still reads it. Does not wait for that program."""

    async def close(self) -> None:
        """Let the running work end, then let go of the database."""


class SessionStore(Protocol):
    """The sessions of one queue, and the lab host that they are granted."""

    async def register_host(self, boot_id: str) -> str | None:
        """Note that this host serves the queue; the identity of the boot that it served in before, if any."""

    async def live_sessions(self) -> list[Session]:
        """The active session of this host, then all who wait, in FIFO order."""

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        """Append a session. A key of a live session of the queue gives that session instead.

        Those who join while a transaction is being written share the next one.

        Args:
            joining: who joins.
            promote: make the head of the queue active, where nobody is and the host is not quarantined.
        """

    async def end(self, session_ids: Iterable[str], code: EndCode, detail: str, now: datetime) -> Ending:
        """End live sessions and make the next one active, in one transaction."""

    async def promote(self, now: datetime) -> Session | None:
        """Make the head of the queue active, where nobody is and the host is not quarantined."""

    async def ended(self, session_id: str) -> EndedSession | None:
        """Why a session ended; None where no ended session of that id is known."""

    async def latest_holds(self, count: int = 20) -> list[float]:
        """For how many seconds the latest sessions of this host were active, oldest first."""

    async def record_last_seen(self, seen: Mapping[str, datetime]) -> None:
        """Write when each of these sessions was last seen."""

    async def quarantine(self) -> Quarantine | None:
        """Why no session is admitted to this host; None where it is sound."""

    async def set_quarantine(self, reason: str | None, now: datetime) -> Quarantine | None:
        """Quarantine the host, or lift that with None; what is in force then: an operator's quarantine stays."""

    async def prune(self, before: datetime) -> int:
        """Forget sessions that ended before a time, and events before it; the number of sessions."""


class LabStore(Protocol):
    """The labs of one slot of a host. At most one is live."""

    async def live_lab(self) -> Lab | None:
        """The lab that starts, runs or stops; None where there is none."""

    async def starting(self, lab: Lab, now: datetime) -> None:
        """Note a lab before netlab is started for it. Raises `DatabaseError` where the slot has a live lab."""

    async def running(self, lab_id: str, devices: list[dict[str, Any]], now: datetime) -> None:
        """Note that a lab is up."""

    async def stopping(self, lab_id: str) -> None:
        """Note that a lab is being torn down."""

    async def ended(self, lab_id: str, code: OutcomeCode, detail: str, now: datetime) -> None:
        """Note that nothing is left of a lab, and how it ended; its references end with it."""

    async def last_ended(self, session_id: str) -> EndedLab | None:
        """The session's latest lab, if it has ended."""

    async def add_reference(self, lab_id: str, session_id: str, key: str | None, now: datetime) -> int:
        """Note one successful acquire; the number of references that are held now.

        Raises `DatabaseError` where there is no such lab, or the session holds a reference with this key.
        """

    async def reference_by_key(self, session_id: str, key: str) -> KeyedReference | None:
        """What the session's latest acquire with this key got."""

    async def release_reference(self, lab_id: str, key: str | None, now: datetime) -> int:
        """Release the newest reference, or the one with `key`; the number of those still held.

        The lab is `stopping` from the same transaction on when none is left.
        """

    async def held_references(self, lab_id: str) -> int:
        """Acquires of a lab that were not yet released."""

    async def prune(self, before: datetime) -> int:
        """Forget labs that ended before a time, with their references; the number of labs."""
