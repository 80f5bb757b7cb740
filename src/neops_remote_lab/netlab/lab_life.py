"""What is to be done about a lab: one pure function of what is written down, what is held, what runs, and the time.

The server's slot and a local `LabManager` both ask it and carry out its answer; neither decides by itself.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from neops_remote_lab.core.codes import LiveLabState, OutcomeCode
from neops_remote_lab.core.identity import Identity


class Operation(StrEnum):
    """What is being done to a lab in the background; at most one at a time."""

    START = "start"
    STOP = "stop"
    ADOPT = "adopt"
    SWEEP = "sweep"


class Step(StrEnum):
    """What to do next."""

    START = "start"
    """Start the lab that is asked for."""
    SHARE = "share"
    """Count one reference more on the lab that runs."""
    JOIN = "join"
    """Wait for the start that runs, and share its failure."""
    STOP = "stop"
    """Tear the lab down."""
    ADOPT = "adopt"
    """Take over the lab that is written down: it runs on, or what is left of it is removed."""
    SWEEP = "sweep"
    """Remove what earlier labs have left behind."""
    INTERRUPT = "interrupt"
    """End the start that runs."""
    WAIT = "wait"
    """Ask again when the operation that runs has ended."""
    REFUSE = "refuse"
    """The lab is in use, or the host is quarantined."""
    REST = "rest"
    """Nothing is to be done."""


class Decision(NamedTuple):
    """A step, and for a teardown why."""

    step: Step
    outcome: OutcomeCode | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """How things stand with one lab."""

    state: LiveLabState | None = None
    """What is written down; None: there is no live lab."""
    identity: Identity | None = None
    references: int = 0
    in_session: bool = False
    """The session that the lab belongs to is active."""
    held: bool = False
    """This process holds the host's lock for the lab."""
    operation: Operation | None = None
    """What runs."""
    awaited: bool = False
    """Somebody waits for the start that runs."""
    leftovers_for: float | None = None
    """Seconds since something of a lab could not be removed; None: nothing is left."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The lab that an acquire of an active session asks for."""

    identity: Identity
    reuse: bool
    same_session: bool
    """The lab there is belongs to the session that asks."""


_REST: Final = Decision(Step.REST)
_WAIT: Final = Decision(Step.WAIT)
_REFUSE: Final = Decision(Step.REFUSE)


def next_step(seen: Seen, wanted: Wanted | None = None, *, sweep_interval: float = math.inf) -> Decision:
    """Decide what to do next, on behalf of an acquire or, without one, by itself.

    Args:
        sweep_interval: seconds between two attempts to remove what is left; acquires never attempt it.
    """
    if wanted is None:
        return _upkeep(seen, sweep_interval)
    if seen.operation:
        return _beside_operation(seen, wanted)
    if seen.leftovers_for is not None:
        return _REFUSE  # beside what could not be removed nothing may run
    if (due := _upkeep(seen, sweep_interval)).step is not Step.REST:
        return due  # what is due without the acquire makes room for it
    if seen.state is None:
        return Decision(Step.START)
    return _for_running(seen, wanted)


def _upkeep(seen: Seen, sweep_interval: float) -> Decision:
    if seen.operation:
        return Decision(Step.INTERRUPT) if seen.operation is Operation.START and not seen.in_session else _WAIT
    if seen.leftovers_for is not None:
        return _for_leftovers(seen, sweep_interval)
    in_use = seen.held and seen.in_session and seen.state is LiveLabState.RUNNING
    if seen.state is None or in_use:
        return _REST
    if not seen.held:
        return Decision(Step.ADOPT)  # an earlier server's, or its end could not be written down
    if not seen.in_session:
        return Decision(Step.STOP, OutcomeCode.SESSION_ENDED)
    return Decision(Step.STOP, OutcomeCode.RELEASED)  # it could not be written down that it began


def _for_leftovers(seen: Seen, sweep_interval: float) -> Decision:
    if seen.leftovers_for is not None and seen.leftovers_for < sweep_interval:
        return _WAIT
    return Decision(Step.STOP, OutcomeCode.LOST) if seen.state and seen.held else Decision(Step.SWEEP)


def _beside_operation(seen: Seen, wanted: Wanted) -> Decision:
    if seen.operation is not Operation.START or not wanted.same_session or not seen.awaited:
        return _WAIT  # nobody is going to hold what is on its way
    same = wanted.identity == seen.identity and wanted.reuse
    return Decision(Step.JOIN) if same else _REFUSE


def _for_running(seen: Seen, wanted: Wanted) -> Decision:
    same = wanted.identity == seen.identity
    if same and (wanted.reuse or not seen.references):
        return Decision(Step.SHARE)  # a lab that nobody has held yet is as good as a fresh one
    if not seen.references:
        return Decision(Step.STOP, OutcomeCode.REPLACED)
    return _REFUSE
