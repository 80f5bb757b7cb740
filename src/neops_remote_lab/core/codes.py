"""Enums that programs act on: states, and why something ended. The database stores the same values.

The values are part of the public interface. Messages for people are separate attributes and may be reworded.
"""

from enum import StrEnum
from typing import Final, Self


class SessionState(StrEnum):
    """The state of a live session."""

    WAITING = "waiting"
    """It waits in the queue."""
    ACTIVE = "active"
    """It may use the lab host."""


class HostState(StrEnum):
    """What the servers of a queue know of a lab host."""

    LIVE = "live"
    """Its server shows signs of life."""
    SILENT = "silent"
    """Its server has shown none for a while: no session becomes active on it."""
    GONE = "gone"
    """Its server has shown none for so long that its labs count as lost."""


class LiveLabState(StrEnum):
    """The state of a live lab."""

    STARTING = "starting"
    """netlab is starting it."""
    RUNNING = "running"
    """Its devices can be used."""
    STOPPING = "stopping"
    """It is being torn down."""


ENDED: Final = "ended"
"""The state, in the database, of a session or a lab that has ended."""


class _CodeWithMessage(StrEnum):
    """Members are written as a code and the message for people."""

    message: str

    def __new__(cls, value: str, message: str = "") -> Self:
        """Create a code."""
        code = str.__new__(cls, value)
        code._value_ = value
        code.message = message
        return code


class EndCode(_CodeWithMessage):
    """Why a session ended. `{max_hold}` in a message stands for the setting."""

    CLIENT = "client", "ended by its client"
    STALE = "stale", "timeout: no call came from its client for too long"
    MAX_HOLD = "max_hold", "maximum hold: it held the lab for more than {max_hold:g} s"
    HOST_GONE = "host_gone", "the lab host vanished"
    OPERATOR = "operator", "ended by an operator"


class OutcomeCode(_CodeWithMessage):
    """How a lab ended. If the start failed or the lab was lost, the recorded message has the cause instead."""

    RELEASED = "released", "released"
    """Its last reference was released."""
    DESTROYED = "destroyed", "destroyed by its session"
    """Its session requested the teardown."""
    SESSION_ENDED = "session_ended", "its session ended"
    REPLACED = "replaced", "replaced by another topology"
    """Its session started another topology."""
    RECLAIMED = "reclaimed", "its memory was needed for another lab before its session became active"
    """It was started in advance."""
    SERVER_ENDED = "server_ended", "the server ended"
    """The server tore the lab down."""
    LOST = "lost", "lost: it could be removed only later"
    """It was missing or incomplete when a restarted server tried to adopt it, or its teardown left something."""
    REJECTED = "rejected", "its topology was rejected"
    IN_THE_WAY = "in_the_way", "another lab prevented its start"
    """That lab is not ours."""
    FAILED = "failed", "its start failed"


EXPECTED: Final = frozenset(
    {
        *(OutcomeCode.RELEASED, OutcomeCode.DESTROYED, OutcomeCode.SESSION_ENDED, OutcomeCode.REPLACED),
        OutcomeCode.RECLAIMED,
    }
)
"""The outcomes that are no problem for the session."""


class StartOutcome(StrEnum):
    """The result of starting a lab."""

    UP = "up"
    """The lab is running."""
    REJECTED = "rejected"
    """netlab rejected its topology."""
    STOPPED = "stopped"
    """It was interrupted."""
    FAILED = "failed"
    """Anything else."""


class StartObstacle(StrEnum):
    """What a start waits for on a host with several slots."""

    MEMORY = "memory"
    """Free memory."""
    STARTS = "starts"
    """The end of other starts."""


class ProxyOutcome(StrEnum):
    """How a call ended that another server of the queue has to answer."""

    ANSWERED = "answered"
    """Its response was passed back, or either side closed its WebSocket."""
    ABANDONED = "abandoned"
    """The client disconnected, or this server shut down."""
    REFUSED = "refused"
    """It was not passed on."""
    UNREACHABLE = "unreachable"
    """The other server accepted no connection."""
    BROKEN = "broken"
    """The other server broke off the connection."""
    SILENT = "silent"
    """The other server's host showed no sign of life, or the server did not end the call after the session's end."""


class EventKind(StrEnum):
    """The kind of an entry in the event table."""

    SESSION_JOINED = "session_joined"
    """A session joined the queue."""
    SESSION_MOVED = "session_moved"
    """An operator changed the rank of a session."""
    SESSION_GRANTED = "session_granted"
    """A session became active, on a host and a slot."""
    SESSION_REQUEUED = "session_requeued"
    """An active session went back to waiting."""
    SESSION_ENDED = "session_ended"
    """A session ended; the code says why."""
    LAB_STARTING = "lab_starting"
    """The start of a lab began."""
    LAB_RUNNING = "lab_running"
    """A lab is running."""
    LAB_STOPPING = "lab_stopping"
    """The teardown of a lab began."""
    LAB_ENDED = "lab_ended"
    """A lab ended and its leftovers are removed; the code says how it ended."""
    REFERENCE_ACQUIRED = "reference_acquired"
    """An acquire succeeded."""
    REFERENCE_RELEASED = "reference_released"
    """A reference was released, or ended with its lab."""
    QUARANTINE_SET = "quarantine_set"
    """A host was quarantined; the code says who set it."""
    QUARANTINE_LIFTED = "quarantine_lifted"
    """A quarantine was lifted; the code says who had set it."""


class QuarantineSource(StrEnum):
    """Who quarantined a lab host."""

    SERVER = "server"
    """The server, because of leftovers. It lifts the quarantine once they are removed."""
    OPERATOR = "operator"
    """An operator. Only an operator lifts it."""
