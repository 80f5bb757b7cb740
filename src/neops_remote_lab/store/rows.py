"""What the store answers: plain, frozen rows."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from neops_remote_lab.core.codes import EndCode, LiveLabState, OutcomeCode, QuarantineSource, SessionState

DEFAULT_QUEUE: Final = "default"
"""The queue that a host serves, and that sessions join, unless they say otherwise."""
FIRST_SLOT: Final = 1
"""Slots of a host are numbered from here; each holds one active session and one live lab at most."""


@dataclass(frozen=True, slots=True)
class Session:
    """A live session."""

    number: int
    rank: int
    """Its place among those who wait: the smallest is next; `number` decides between equal ones."""
    session_id: str
    state: SessionState
    client: str | None
    purpose: str | None
    created_at: datetime
    activated_at: datetime | None


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


@dataclass(frozen=True, slots=True)
class Joining:
    """Somebody who joins the queue."""

    session_id: str
    client: str | None
    purpose: str | None
    key: str | None
    now: datetime


@dataclass(frozen=True, slots=True)
class Ending:
    """What an ending changed: who ended, and who became active in the same transaction."""

    ended: tuple[str, ...]
    promoted: Session | None


class KeyedReference(NamedTuple):
    """What an acquire with an idempotency key got."""

    lab_id: str
    held: bool
    outcome: OutcomeCode | None
    """How the lab ended; None while it lives."""


class EndedLab(NamedTuple):
    """A lab that is gone, with how it ended, as a code and as a sentence."""

    lab_id: str
    code: OutcomeCode
    detail: str


class EndedSession(NamedTuple):
    """Why a session ended, as a code and as a sentence."""

    code: EndCode
    detail: str


class Quarantine(NamedTuple):
    """Why a lab host takes no labs, and who says so."""

    source: QuarantineSource
    reason: str
