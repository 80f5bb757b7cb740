"""Describes what a session waits for."""

from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.session import SessionStatusResponseDto


def sentence(status: SessionStatusResponseDto, waited: float = 0) -> str:
    """Position, estimated wait and the active session, in one line.

    Args:
        status: the server's response.
        waited: seconds since that response; they are subtracted from the estimate.
    """
    parts = [f"position {status.position} in the queue"]
    if status.eta_seconds is not None and status.eta_seconds > waited:
        parts.append(f"about {duration(status.eta_seconds - waited)}")
    if status.waiting_for:  # with labels of other clients
        parts.append(one_line(status.waiting_for))
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
