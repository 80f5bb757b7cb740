"""Refusals of calls on the lab: a reason code for programs, and a message for the caller."""

import errno
import logging
import subprocess
from enum import StrEnum
from typing import Final

from neops_remote_lab.netlab.failures import LabInTheWay, SharesHost, TopologyRejected, failure
from neops_remote_lab.store.protocol import DatabaseError

logger = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a call failed."""

    SESSION_ENDED = "session_ended"
    NO_LAB = "no_lab"
    NO_DEVICE = "no_device"
    """The lab has no such node."""
    UNSUPPORTED = "unsupported"
    """The node's provider does not support the operation."""
    UNREACHABLE = "unreachable"
    """A node cannot be reached, or refuses the connection."""
    CONNECT_TIMED_OUT = "connect_timed_out"
    """A node neither accepted nor refused the connection in time."""
    TIMED_OUT = "timed_out"
    """A command in a node did not end in time."""
    UNKNOWN_KEY = "unknown_key"
    """No acquire had this idempotency key."""
    RELEASED_KEY = "released_key"
    """The acquire with this idempotency key has been released."""
    BUSY = "busy"
    """The lab is in use, or a lab that is not ours prevents the start."""
    QUARANTINED = "quarantined"
    TAKEN_ALREADY = "taken_already"
    """Another call of the session is collecting the artifacts of its lab."""
    IN_USE = "in_use"
    """The lab has references, and the call did not force its end."""
    DESTROYED = "destroyed"
    """The session itself stopped the start."""
    SERVER_ENDS = "server_ends"
    TURN_HAS_COME = "turn_has_come"
    """The session is active now: a check would only delay its lab."""
    REJECTED = "rejected"
    """netlab rejects the topology."""
    TOO_LARGE = "too_large"
    """The lab needs more memory than the lab host has."""
    HOST_IS_FULL = "host_is_full"
    """The lab host is out of disk space or memory."""
    DATABASE_FAILED = "database_failed"
    """The database could not be used, so that a start could not be recorded."""
    FAILED = "failed"
    """The host or its netlab failed."""


class Refused(RuntimeError):
    """A call on the lab is refused or failed; the message is for its caller."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def refusal_of(error: Exception, failed: str = "netlab failed to start the lab") -> Refused:
    """Translate an exception of netlab into a refusal for the caller. Unexpected exceptions are logged.

    Args:
        failed: what failed; the message begins with it.
    """
    reason = Reason.FAILED
    match error:
        case Refused():
            return error
        case LabInTheWay():
            reason, detail = Reason.BUSY, f"the lab is busy: {error}"
        case SharesHost():
            reason, detail = Reason.REJECTED, f"the topology cannot run beside other labs on this host: {error}"
        case TopologyRejected():
            reason, detail = Reason.REJECTED, f"netlab rejects the topology: {error}"
        case DatabaseError():
            reason = Reason.DATABASE_FAILED
            detail = f"{failed}, because the server's database could not be used ({error}): try again later"
        case FileNotFoundError():
            detail = "netlab cannot be run on the lab host: install it there, or name it with --netlab"
        case MemoryError():
            reason, detail = Reason.HOST_IS_FULL, f"{failed}: {error}"
        case OSError(errno=number) if number in _DISK_FULL:
            reason = Reason.HOST_IS_FULL
            detail = f"{failed}: the disk of the lab host is full. Free it and try again"
        case subprocess.TimeoutExpired():
            detail = f"{failed}: {failure(error)}. --up-timeout sets that limit on the lab host"
        case subprocess.SubprocessError() | TimeoutError():
            detail = f"{failed}: {failure(error)}"
        case _:
            logger.error("%s", failed, exc_info=error)
            detail = f"{failed} ({type(error).__name__}); the server's log says why"
    return Refused(reason, detail)
