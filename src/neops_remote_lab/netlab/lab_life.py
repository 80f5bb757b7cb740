"""Decides what to do with a lab: one pure function of the recorded state, the lock, the running operation and the time.

The server's slot and a local `LabManager` both call it and carry out its decision; neither decides by itself.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from neops_remote_lab.core.codes import LiveLabState, OutcomeCode
from neops_remote_lab.core.identity import Identity


class Operation(StrEnum):
    """A background operation on a lab; at most one runs at a time."""

    START = "start"
    STOP = "stop"
    ADOPT = "adopt"
    SWEEP = "sweep"


class Step(StrEnum):
    """What to do next."""

    START = "start"
    """Start the requested lab."""
    SHARE = "share"
    """Add a reference to the running lab."""
    JOIN = "join"
    """Wait for the start in progress, and share its failure."""
    STOP = "stop"
    """Tear the lab down."""
    ADOPT = "adopt"
    """Take over the recorded lab: keep it if it is running, otherwise remove its leftovers."""
    SWEEP = "sweep"
    """Remove the leftovers of earlier labs."""
    INTERRUPT = "interrupt"
    """Interrupt the start in progress."""
    WAIT = "wait"
    """Decide again when the running operation has ended."""
    REFUSE = "refuse"
    """The lab is in use, or the host is quarantined."""
    NOTHING = "nothing"
    """There is nothing to do."""


class Decision(NamedTuple):
    """A step, and the reason of a teardown."""

    step: Step
    outcome: OutcomeCode | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """The situation of one lab."""

    state: LiveLabState | None = None
    """The recorded state; None if there is no live lab."""
    identity: Identity | None = None
    references: int = 0
    in_session: bool = False
    """The session that the lab belongs to is active."""
    held: bool = False
    """This process holds the host's lock for the lab."""
    operation: Operation | None = None
    """The operation in progress."""
    awaited: bool = False
    """A client waits for the start in progress."""
    leftovers_for: float | None = None
    """Seconds since the leftovers of a lab could not be removed; None if there are none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The lab that an acquire of an active session requests."""

    identity: Identity
    reuse: bool
    same_session: bool
    """The current lab belongs to the same session."""


_NOTHING: Final = Decision(Step.NOTHING)
_WAIT: Final = Decision(Step.WAIT)
_REFUSE: Final = Decision(Step.REFUSE)


def next_step(seen: Observed, wanted: Wanted | None = None, *, sweep_interval: float = math.inf) -> Decision:
    """Decide what to do next.

    Args:
        seen: the situation.
        wanted: the request of an acquire; None decides on maintenance.
        sweep_interval: seconds between two attempts to remove leftovers. An acquire never starts such an attempt.
    """
    if wanted is None:
        return _upkeep(seen, sweep_interval)
    if seen.operation:
        return _beside_operation(seen, wanted)
    if seen.leftovers_for is not None:
        return _REFUSE  # no lab may run beside leftovers
    if (due := _upkeep(seen, sweep_interval)).step is not Step.NOTHING:
        return due  # pending maintenance frees the slot for this acquire
    if seen.state is None:
        return Decision(Step.START)
    return _for_running(seen, wanted)


def _upkeep(seen: Observed, sweep_interval: float) -> Decision:
    if seen.operation:
        return Decision(Step.INTERRUPT) if seen.operation is Operation.START and not seen.in_session else _WAIT
    if seen.leftovers_for is not None:
        return _for_leftovers(seen, sweep_interval)
    in_use = seen.held and seen.in_session and seen.state is LiveLabState.RUNNING
    if seen.state is None or in_use:
        return _NOTHING
    if not seen.held:
        return Decision(Step.ADOPT)  # an earlier server started it, or its end could not be recorded
    if not seen.in_session:
        return Decision(Step.STOP, OutcomeCode.SESSION_ENDED)
    return Decision(Step.STOP, OutcomeCode.RELEASED)  # its start or teardown could not be recorded


def _for_leftovers(seen: Observed, sweep_interval: float) -> Decision:
    if seen.leftovers_for is not None and seen.leftovers_for < sweep_interval:
        return _WAIT
    return Decision(Step.STOP, OutcomeCode.LOST) if seen.state and seen.held else Decision(Step.SWEEP)


def _beside_operation(seen: Observed, wanted: Wanted) -> Decision:
    if seen.operation is not Operation.START or not wanted.same_session or not seen.awaited:
        return _WAIT  # no reference will be held when the operation ends
    same = wanted.identity == seen.identity and wanted.reuse
    return Decision(Step.JOIN) if same else _REFUSE


def _for_running(seen: Observed, wanted: Wanted) -> Decision:
    if not wanted.same_session:
        return _REFUSE
    same = wanted.identity == seen.identity
    if same and (wanted.reuse or not seen.references):
        return Decision(Step.SHARE)  # a lab that had no reference yet is as good as a fresh one
    if not seen.references:
        return Decision(Step.STOP, OutcomeCode.REPLACED)
    return _REFUSE
