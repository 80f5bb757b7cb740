"""Rows of the store, as immutable values."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from neops_remote_lab.core.codes import EndCode, HostState, LiveLabState, OutcomeCode, QuarantineSource, SessionState

DEFAULT_QUEUE: Final = "default"
"""The queue that hosts serve and sessions join by default."""
FIRST_SLOT: Final = 1
"""The number of a host's first slot. A slot has at most one active session and one live lab."""
LAST_LAB_NUMBER: Final = 200
"""The largest lab number, which is also the third octet of the lab's management network."""


@dataclass(frozen=True, slots=True)
class Session:
    """A live session."""

    number: int
    rank: int
    """Order of the waiting sessions: the smallest is next; `number` decides between equal ranks."""
    session_id: str
    state: SessionState
    client: str | None
    purpose: str | None
    created_at: datetime
    activated_at: datetime | None
    host: str | None = None
    """The lab host of an active session."""
    slot: int | None = None
    """The slot of an active session on its host."""


@dataclass(frozen=True, slots=True)
class Lab:
    """The live lab of a slot."""

    lab_id: str
    session_id: str
    state: LiveLabState
    topology: str
    topology_sha256: str
    extra_sha256: str | None
    work_dir: str
    devices: list[dict[str, Any]] | None
    lab_number: int | None = None
    """The lab's number on its host, 1 to 200, unique among the live labs; None on a host with one slot."""


@dataclass(frozen=True, slots=True)
class Joining:
    """A session that is to be appended."""

    session_id: str
    client: str | None
    purpose: str | None
    key: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of ending sessions: the ids of those ended, and the sessions that became active."""

    ended: tuple[str, ...]
    promoted: tuple[Session, ...]


class KeyedReference(NamedTuple):
    """The reference that an acquire with an idempotency key added."""

    lab_id: str
    held: bool
    outcome: OutcomeCode | None
    """How the lab ended; None while it is live."""


class EndedLab(NamedTuple):
    """How a lab ended, as a code and as a message."""

    lab_id: str
    code: OutcomeCode
    detail: str


class EndedSession(NamedTuple):
    """Why a session ended, as a code and as a message."""

    code: EndCode
    detail: str


@dataclass(frozen=True, slots=True)
class Registration:
    """A server that begins to serve a queue with its host."""

    boot_id: str
    slots: int = 1
    """Number of sessions that can be active at once. Slots beyond it are closed."""
    address: str | None = None
    """URL at which the other servers of the queue reach it."""
    incarnation: str | None = None
    """Identifies the process among all that ever served with this host's name."""


@dataclass(frozen=True, slots=True)
class Host:
    """A lab host of a queue."""

    name: str
    address: str | None
    state: HostState
    open_slots: tuple[int, ...]
    is_draining: bool
    """An operator wants no further session to become active on it."""
    holds_grants: bool
    """Its server wants no further session to become active on it, while a lab waits for memory."""
    epoch: int
    """Counts its servers, and the times that it was declared silent or gone."""
    incarnation: str | None
    beat: int
    """Grows while its server is alive."""
    quarantined: str | None

    @property
    def slots(self) -> int:
        """Number of open slots."""
        return len(self.open_slots)

    @property
    def serves(self) -> bool:
        """Whether sessions become active on it, now or when it has memory."""
        return self.state is HostState.LIVE and not self.is_draining and self.quarantined is None

    @property
    def admits(self) -> bool:
        """Whether sessions can become active on it now."""
        return self.serves and not self.holds_grants


@dataclass(frozen=True, slots=True)
class Changes:
    """What other programs may have changed in the database."""

    sessions: frozenset[str] | None = frozenset()
    """Ids of sessions; None means any session."""
    hosts: bool = False
    """Whether a host or a slot may have changed."""

    def __bool__(self) -> bool:
        return self != Changes()

    def __or__(self, other: "Changes") -> "Changes":
        known = None not in {self.sessions, other.sessions}
        sessions = (self.sessions or frozenset()) | (other.sessions or frozenset())
        return Changes(sessions if known else None, self.hosts or other.hosts)


ANY_CHANGE: Final = Changes(sessions=None, hosts=True)


class Quarantine(NamedTuple):
    """Who quarantined a lab host, and why."""

    source: QuarantineSource
    reason: str
