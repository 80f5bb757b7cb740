"""Outcomes of starts that failed: what is recorded, counted and answered."""

from typing import Final

from neops_remote_lab.core.codes import OutcomeCode, StartOutcome
from neops_remote_lab.labs.refusals import Reason, Refused, refusal_of

_STOPPED: Final = {
    OutcomeCode.SESSION_ENDED: Reason.SESSION_ENDED,
    OutcomeCode.DESTROYED: Reason.DESTROYED,
    OutcomeCode.SERVER_ENDED: Reason.SERVER_ENDS,
}
_FAILURES: Final = {
    Reason.REJECTED: OutcomeCode.REJECTED,
    Reason.TOO_LARGE: OutcomeCode.REJECTED,
    Reason.BUSY: OutcomeCode.IN_THE_WAY,
}


def start_refusal(error: Exception, stopped_for: OutcomeCode | None) -> Refused:
    """The refusal for all acquires that wait for a failed start.

    Args:
        stopped_for: why the start was interrupted, if it was.
    """
    if isinstance(error, InterruptedError) and stopped_for:
        return Refused(_STOPPED[stopped_for], f"the lab's start was stopped: {stopped_for.message}")
    return refusal_of(error)


def end_of_start(error: Exception, refused: Refused, stopped_for: OutcomeCode | None) -> tuple[OutcomeCode, str]:
    """The outcome code and the message to record for a failed start."""
    if isinstance(error, InterruptedError) and stopped_for:
        return stopped_for, stopped_for.message
    return _FAILURES.get(refused.reason, OutcomeCode.FAILED), str(refused)


def start_outcome(error: Exception, refused: Refused) -> StartOutcome:
    """The metrics label of a failed start."""
    if isinstance(error, InterruptedError):
        return StartOutcome.STOPPED
    rejected = _FAILURES.get(refused.reason) is OutcomeCode.REJECTED
    return StartOutcome.REJECTED if rejected else StartOutcome.FAILED
