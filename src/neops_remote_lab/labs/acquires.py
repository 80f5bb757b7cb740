"""One acquire on its way, and what its failures mean to whoever waits for it."""

import asyncio
import errno
import logging
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Final

from starlette import status
from starlette.exceptions import HTTPException

from neops_remote_lab.core.codes import OutcomeCode
from neops_remote_lab.core.metrics import Outcome
from neops_remote_lab.models import AcquireResponseDto
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.workspace import Workspace

logger = logging.getLogger(__name__)

ENDINGS: Final = {
    OutcomeCode.RELEASED: "released",
    OutcomeCode.DESTROYED: "destroyed by its session",
    OutcomeCode.SESSION_ENDED: "its session ended",
    OutcomeCode.REPLACED: "replaced by another topology",
    OutcomeCode.SERVER_ENDED: "the server ended, and was told to tear the lab down",
}
"""How labs end that nothing went wrong with, for people."""

_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_STOPPED: Final = {
    OutcomeCode.SESSION_ENDED: status.HTTP_404_NOT_FOUND,
    OutcomeCode.DESTROYED: status.HTTP_409_CONFLICT,
    OutcomeCode.SERVER_ENDED: status.HTTP_503_SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent: a workspace with the topology and its extra files."""

    workspace: Workspace
    reuse: bool


@dataclass(eq=False)
class Operation:
    """What is being done to the lab."""

    task: asyncio.Task[None]
    starts_for: "Acquire | None" = None
    """The acquire whose lab is brought up; None when a lab is taken down or recovered."""


@dataclass(eq=False)
class Acquire:
    """One acquire, from its first request to its answer. Retries with the same key share it."""

    session_id: str
    upload: Upload
    key: str | None
    present: int = 0
    """Requests that wait for the answer. Without any the lab is not counted as held."""
    interrupt: threading.Event = field(default_factory=threading.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the start of the lab is written down."""
    task: asyncio.Task[AcquireResponseDto] | None = None


def stopped(code: OutcomeCode, retry_after: int) -> HTTPException:
    """The answer to an acquire whose start was stopped."""
    headers = {"Retry-After": str(retry_after)}
    return HTTPException(_STOPPED[code], detail=f"the lab's start was stopped: {ENDINGS[code]}", headers=headers)


def lab_in_the_way(reason: str, retry_after: int) -> HTTPException:
    """The answer to an acquire that meets a lab of somebody else."""
    headers = {"Retry-After": str(retry_after)}
    return HTTPException(status.HTTP_423_LOCKED, detail=f"the lab is busy: {reason}", headers=headers)


def outcome_of(error: Exception) -> Outcome:
    """How a start ended, for the metrics."""
    if isinstance(error, ValueError):
        return "rejected"
    return "stopped" if isinstance(error, InterruptedError) else "failed"


def answer_to(error: Exception, failed: str = "netlab failed to start the lab") -> HTTPException:
    """The answer where netlab made no lab of a topology: 422 is the topology's fault, and nothing else is.

    Args:
        failed: what failed, as the beginning of a sentence.
    """
    code = status.HTTP_500_INTERNAL_SERVER_ERROR
    match error:
        case ValueError():
            code, detail = status.HTTP_422_UNPROCESSABLE_CONTENT, f"netlab rejects the topology: {error}"
        case FileNotFoundError():
            detail = "netlab cannot be run on the lab host: install it there, or name it with --netlab"
        case MemoryError():
            code, detail = status.HTTP_507_INSUFFICIENT_STORAGE, f"{failed}: {error}"
        case OSError(errno=number) if number in _DISK_FULL:
            code = status.HTTP_507_INSUFFICIENT_STORAGE
            detail = f"{failed}: the disk of the lab host is full. Free it and try again"
        case subprocess.TimeoutExpired():
            detail = f"{failed}: {failure(error)}. --up-timeout sets that limit on the lab host"
        case subprocess.SubprocessError() | TimeoutError():
            detail = f"{failed}: {failure(error)}"
        case _:
            logger.error("%s", failed, exc_info=error)
            detail = f"{failed} ({type(error).__name__}); the server's log says why"
    return HTTPException(code, detail=detail)
