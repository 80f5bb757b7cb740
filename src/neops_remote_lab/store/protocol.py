"""The interface between the queue, the labs and a database.

Each call is one transaction, which is durable when the call returns. Cancelling the caller does not interrupt it. Any
call raises `DatabaseError` if the database cannot be used. `tests/conformance` tests what every implementation must do.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from neops_remote_lab.core.codes import EndCode, HostState, OutcomeCode
from neops_remote_lab.core.identity import Identity
from neops_remote_lab.store.rows import (
    Changes,
    EndedLab,
    EndedSession,
    Ending,
    Host,
    Joining,
    KeyedReference,
    Lab,
    Quarantine,
    Registration,
    Session,
)


class DatabaseError(Exception):
    """The database cannot be used, or a constraint is violated; the message is the database's."""


class Fenced(DatabaseError):
    """Other servers have declared this host silent or gone, or have done so and ended what it is about to change; or
    another process serves with its name."""


class Database(Protocol):
    """The connection to the database, and its maintenance."""

    @property
    def is_shared(self) -> bool:
        """Whether several servers can use the database."""

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until another program changes the database, for at most so many seconds."""

    @property
    def log_bytes(self) -> int:
        """The size of the write-ahead log, in bytes, at the latest measurement."""

    async def ping(self) -> None:
        """Ask the database for nothing. Raises `DatabaseError` if it cannot be used."""

    async def changes(self) -> Changes:
        """What other programs, but not this one, have changed since the previous call. At first, that is anything."""

    async def measure_log(self) -> int:
        """Measure the size of the write-ahead log, in bytes; `log_bytes` keeps the result."""

    async def shrink_log(self) -> bool:
        """Truncate the write-ahead log. Returns False, without waiting, if another program is reading it."""

    async def close(self) -> None:
        """Wait for running transactions, then close the connection."""


class SessionStore(Protocol):
    """The sessions of one queue, and the lab hosts that serve it. One of them is this host."""

    async def register_host(self, registration: Registration) -> str | None:
        """Record that this host serves the queue, in a new epoch. Writes of earlier epochs raise `Fenced` from then on.

        Returns the boot id recorded before; None for a new host.
        """

    async def beat(self) -> bool:
        """Show the other servers a sign of life. Returns False if this host's epoch has ended."""

    async def hosts(self) -> list[Host]:
        """All hosts of the queue, by name."""

    async def declare(self, host: Host, state: HostState, now: datetime) -> bool:
        """Declare another host silent or gone, unless it has shown a sign of life since it was read.

        Active sessions of a silent host that have no lab wait again, at their place in the queue. Active sessions of a
        host that is gone end, and its labs are lost. Waiting sessions become active as with `promote`. Returns whether
        the host was declared so.
        """

    async def occupied_slots(self) -> list[int]:
        """The slots of this host that have an active session or a live lab, in order."""

    async def live_sessions(self, session_ids: Collection[str] | None = None) -> list[Session]:
        """The active sessions of all hosts by host and slot, then the waiting ones in FIFO order.

        Args:
            session_ids: read only these, those of them that are live, in any order.
        """

    async def last_seen(self) -> dict[str, datetime]:
        """When the live sessions were last seen, as far as servers have written it, by session id."""

    async def join(self, joining: Joining, *, promote: bool) -> Session:
        """Append a session. If a live session of the queue has the same key, return that session instead.

        Calls that arrive during a transaction share the next one.

        Args:
            joining: the new session.
            promote: also make waiting sessions active, as `promote` does.
        """

    async def end(self, session_ids: Iterable[str], code: EndCode, detail: str, now: datetime) -> Ending:
        """End live sessions and make waiting ones active, as `promote` does, in one transaction."""

    async def promote(self, now: datetime) -> tuple[Session, ...]:
        """Make as many sessions active, from the head of the queue, as the hosts have free and open slots.

        On a host that is quarantined, draining, not live, or that holds its grants, no session becomes active. Returns
        the sessions that became active, in FIFO order.
        """

    async def ended(self, session_id: str) -> EndedSession | None:
        """Why a session ended; None if no ended session has that id."""

    async def endings(self, session_ids: Collection[str]) -> dict[str, EndedSession]:
        """Why sessions ended, by session id. Those that have not ended are left out."""

    async def latest_holds(self, count: int = 20) -> list[float]:
        """How long the latest sessions of this host were active, in seconds, oldest first."""

    async def record_last_seen(self, seen: Mapping[str, datetime]) -> None:
        """Write the times at which sessions were last seen, by session id."""

    async def quarantine(self) -> Quarantine | None:
        """The quarantine of this host; None if there is none."""

    async def set_quarantine(self, reason: str | None, now: datetime) -> Quarantine | None:
        """Quarantine the host for a reason; None lifts the quarantine. One set by an operator is not changed.

        Returns the quarantine that is in force afterwards.
        """

    async def hold_grants(self, *, on: bool) -> None:
        """Let no further session become active on this host; False ends that, and so does a registration."""

    async def prune(self, before: datetime) -> int:
        """Delete sessions that ended before a time, and events before it. Returns the number of sessions."""


class LabStore(Protocol):
    """The labs of one slot of a host. At most one is live."""

    async def live_lab(self) -> Lab | None:
        """The live lab: starting, running or stopping; None if there is none."""

    async def starting(self, lab: Lab, now: datetime, *, in_advance: bool = False) -> None:
        """Insert a lab, before netlab is started for it.

        Args:
            in_advance: its session may be waiting.

        Raises:
            DatabaseError: the slot has a live lab.
            Fenced: the session is active on another host, or waits.
        """

    async def running(
        self, lab_id: str, devices: list[dict[str, Any]], now: datetime, lab_number: int | None = None
    ) -> None:
        """Record that a lab is running, with its devices and its number; None on a host with one slot.

        Raises `Fenced` if the lab has ended.
        """

    async def stopping(self, lab_id: str) -> None:
        """Record that the teardown of a lab has begun."""

    async def ended(self, lab_id: str, code: OutcomeCode, detail: str, now: datetime) -> None:
        """Record how a lab ended, after nothing is left of it. Its references are released.

        A lab that has ended already, for example because its host was declared gone, keeps its first outcome.
        """

    async def last_ended(self, session_id: str) -> EndedLab | None:
        """The session's latest lab, if it has ended; otherwise None."""

    async def add_reference(self, lab_id: str, session_id: str, key: str | None, now: datetime) -> int:
        """Add a reference. Returns the number of references held afterwards.

        Raises:
            Fenced: the lab has ended, or does not exist.
            DatabaseError: the session holds a reference with this key.
        """

    async def reference_by_key(self, session_id: str, key: str) -> KeyedReference | None:
        """The reference of the session's latest acquire with this key; None if there was no such acquire."""

    async def release_reference(self, lab_id: str, key: str | None, now: datetime) -> int:
        """Release the newest reference, or the one with `key`. Returns the number of references still held.

        If no reference is left, the same transaction sets the lab to `stopping`.
        """

    async def held_references(self, lab_id: str) -> int:
        """The number of references to a lab that are not yet released."""

    async def prune(self, before: datetime) -> int:
        """Delete labs that ended before a time, with their references. Returns the number of labs."""


class MemoryStore(Protocol):
    """How much memory labs used."""

    async def record(self, lab_id: str, used: int, nodes: Sequence[tuple[str, int]], now: datetime) -> None:
        """Record the highest memory of a lab.

        Args:
            used: of all nodes together, in bytes.
            nodes: the image of each node, and its highest memory in bytes.
        """

    async def of_topology(self, identity: Identity) -> int | None:
        """The highest memory of earlier labs of a topology, in bytes; None if there is none."""

    async def of_images(self, images: Iterable[str]) -> dict[str, int]:
        """The 95th percentile of the memory of the latest nodes, in bytes, by image. Unknown images are left out."""

    async def prune(self, before: datetime) -> None:
        """Delete the measurements of nodes before a time."""
