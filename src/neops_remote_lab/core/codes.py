"""What programs act on: states, and why something ended. The database holds the same words.

Sentences for people stand beside a code and may be reworded; a code is part of the product.
"""

from enum import StrEnum
from typing import Final


class SessionState(StrEnum):
    """What a live session does."""

    WAITING = "waiting"
    """It has its place in the queue."""
    ACTIVE = "active"
    """It holds the lab host."""


class LiveLabState(StrEnum):
    """What a live lab does."""

    STARTING = "starting"
    """netlab brings it up."""
    RUNNING = "running"
    """Its devices can be used."""
    STOPPING = "stopping"
    """It is torn down."""


ENDED: Final = "ended"
"""The state, in the database, of a session or a lab that is history."""


class EndCode(StrEnum):
    """Why a session ended."""

    CLIENT = "client"
    """Its client ended it."""
    STALE = "stale"
    """It was last seen longer ago than the timeout allows."""
    MAX_HOLD = "max_hold"
    """It held the lab host for longer than is allowed."""
    OPERATOR = "operator"
    """A person ended it with SQL."""


class OutcomeCode(StrEnum):
    """How a lab ended."""

    RELEASED = "released"
    """Its last reference was released."""
    DESTROYED = "destroyed"
    """Its session asked for its teardown."""
    SESSION_ENDED = "session_ended"
    """Its session ended."""
    REPLACED = "replaced"
    """Its session started another topology."""
    SERVER_ENDED = "server_ended"
    """The server ended, and was told to tear the lab down."""
    LOST = "lost"
    """It was gone, or did not run whole, when a server took it over."""
    REJECTED = "rejected"
    """netlab rejects its topology."""
    IN_THE_WAY = "in_the_way"
    """It could not start because of a lab of somebody else."""
    FAILED = "failed"
    """Its start failed."""


EXPECTED: Final = frozenset(
    {OutcomeCode.RELEASED, OutcomeCode.DESTROYED, OutcomeCode.SESSION_ENDED, OutcomeCode.REPLACED}
)
"""How labs end that end as their session wanted it."""


class StartOutcome(StrEnum):
    """How the start of a lab came to its end."""

    UP = "up"
    """The lab runs."""
    REJECTED = "rejected"
    """netlab rejects its topology."""
    STOPPED = "stopped"
    """It was interrupted."""
    FAILED = "failed"
    """Anything else."""


class EventKind(StrEnum):
    """What an event tells."""

    SESSION_JOINED = "session_joined"
    """A session joined the queue."""
    SESSION_MOVED = "session_moved"
    """A person changed the rank of a session."""
    SESSION_GRANTED = "session_granted"
    """A session became active, on a host and a slot."""
    SESSION_REQUEUED = "session_requeued"
    """A session waits again."""
    SESSION_ENDED = "session_ended"
    """A session ended; the code says why."""
    LAB_STARTING = "lab_starting"
    """The start of a lab began."""
    LAB_RUNNING = "lab_running"
    """A lab is up."""
    LAB_STOPPING = "lab_stopping"
    """The teardown of a lab began."""
    LAB_ENDED = "lab_ended"
    """Nothing is left of a lab; the code says how it ended."""
    REFERENCE_ACQUIRED = "reference_acquired"
    """An acquire succeeded."""
    REFERENCE_RELEASED = "reference_released"
    """A reference was released, or ended with its lab."""
    QUARANTINE_SET = "quarantine_set"
    """A host was quarantined; the code says by whom."""
    QUARANTINE_LIFTED = "quarantine_lifted"
    """A quarantine was lifted; the code says who had set it."""


class QuarantineSource(StrEnum):
    """Who quarantined a lab host."""

    SERVER = "server"
    """The server, because of leftovers; it lifts the quarantine once they are removed."""
    OPERATOR = "operator"
    """A person, who alone lifts it."""
