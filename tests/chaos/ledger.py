"""Checks the history of a run: acknowledged calls are in the database, and nothing in it violates an invariant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from neops_remote_lab.core.codes import ENDED, EndCode, EventKind, OutcomeCode
from tests.chaos.history import Event, History
from tests.chaos.journal import Fact, FactKind
from tests.chaos.replay import Violation, ViolationKind, moved_sessions, replay

LEFT_LIMIT: Final = 30.0
"""Seconds within which a lab must have ended that its session has lost. No server is down or cut off for so long."""


def violations(history: History) -> list[Violation]:
    """All violations in a history."""
    return [
        *replay(history),
        *_promises(history),
        *_order_of_joins(history),
        *_ends_of_references(history),
        *_starts(history),
        *_streams(history),
        *_ends_of_labs(history),
    ]


def _promises(history: History) -> Iterator[Violation]:
    """Each acknowledged call was in the database before its response."""
    sessions = {row.session_id: row for row in history.sessions}
    references = {(row.session_id, row.key): row for row in history.references}
    for fact in history.facts:
        session = sessions.get(fact.session_id)
        reference = references.get((fact.session_id, fact.key))
        match fact.what:
            case FactKind.JOINED:
                kept = session is not None and session.created_at <= fact.at
            case FactKind.LEFT | FactKind.ENDED:
                kept = session is not None and session.state == ENDED and _by(session.ended_at, fact)
            case FactKind.ACQUIRED:
                kept = reference is not None and reference.acquired_at <= fact.at
            case FactKind.RELEASED:
                kept = reference is not None and _by(reference.released_at, fact)
            case FactKind.UNEXPECTED:
                yield Violation(ViolationKind.UNEXPECTED, f"{fact.session_id}: {fact.key}")
                continue
            case FactKind.HUNG:
                yield Violation(ViolationKind.HUNG, f"{fact.session_id}: {fact.key}")
                continue
            case _:
                continue
        if not kept:
            yield Violation(ViolationKind.LOST, f"{fact}; the database has {session} and {reference}")


def _by(time: float | None, fact: Fact) -> bool:
    return time is not None and time <= fact.at


def _order_of_joins(history: History) -> Iterator[Violation]:
    """A session whose join was answered before another one was sent is in front of it, unless an operator moved one."""
    moved = moved_sessions(history)
    joined = {fact.session_id: fact for fact in history.facts if fact.what is FactKind.JOINED}
    rows = sorted((row for row in history.sessions if row.session_id not in moved), key=lambda row: row.rank)
    last_rank, latest_asked = None, 0.0
    for row in rows:
        if row.rank == last_rank:
            yield Violation(ViolationKind.INVERSION, f"{row.session_id} has the rank {row.rank} of another session")
        last_rank = row.rank
        if fact := joined.get(row.session_id):
            if fact.at < latest_asked:
                yield Violation(
                    ViolationKind.INVERSION, f"{row.session_id} has joined before one that is in front of it asked"
                )
            latest_asked = max(latest_asked, fact.asked)


def _ends_of_references(history: History) -> Iterator[Violation]:
    """A reference lasts until its client releases it, its session ends, or a fault ends its lab."""
    asked: dict[tuple[str, str], float] = {
        (fact.session_id, fact.key): fact.asked for fact in history.facts if fact.what is FactKind.RELEASING
    }
    killed: dict[str, list[float]] = defaultdict(list)
    for fact in history.facts:
        if fact.what is FactKind.KILLED:
            killed[fact.session_id].append(fact.at)
    ended = {row.session_id: row for row in history.sessions if row.state == ENDED}
    acquired = {(fact.session_id, fact.key) for fact in history.facts if fact.what is FactKind.ACQUIRED}
    for row in history.references:
        if (row.session_id, row.key) not in acquired or row.released_at is None:
            continue
        released = asked.get((row.session_id, row.key), row.released_at + 1) <= row.released_at
        session = ended.get(row.session_id)
        over = session is not None and session.ended_at is not None and session.ended_at <= row.released_at
        gone = session is not None and session.end_code == EndCode.HOST_GONE
        lost = row.lab_code == OutcomeCode.LOST and any(row.acquired_at <= kill for kill in killed[row.host])
        if not (released or over or gone or lost):
            yield Violation(ViolationKind.UNEXPLAINED_END, f"nobody has ended the reference {row}")


def _starts(history: History) -> Iterator[Violation]:
    """The netlab of a host starts each lab that the database has for this host, once."""
    for line in history.collisions:
        yield Violation(ViolationKind.COLLISION, line)
    hosts = {
        event.lab_id: event.host for event in history.events if event.lab_id and event.what == EventKind.LAB_STARTING
    }
    seen: set[str] = set()
    for start in history.starts:
        if hosts.get(start.lab_id) != start.host:
            yield Violation(ViolationKind.COLLISION, f"{start} is not a lab of this host")
        if start.lab_id in seen:
            yield Violation(ViolationKind.COLLISION, f"{start} is started twice")
        seen.add(start.lab_id)


def _streams(history: History) -> Iterator[Violation]:
    """An event stream delivers the log of its own session's lab only."""
    owners = {event.lab_id: event.session_id for event in history.events if event.what == EventKind.LAB_STARTING}
    for fact in history.facts:
        if fact.what is FactKind.STREAMED and owners.get(fact.key) != fact.session_id:
            said = f"{fact.session_id} got the log of lab {fact.key} of {owners.get(fact.key)}"
            yield Violation(ViolationKind.FOREIGN_STREAM, said)


def _ends_of_labs(history: History) -> Iterator[Violation]:
    """A lab ends soon after its session has ended or, if it was started in advance, become active on another host."""
    labs: dict[str | None, Event] = {}
    """The live labs, with the events of their starts."""
    since: dict[str | None, float] = {}
    """When those of them that must end began to have to."""
    ended: set[str | None] = set()
    for event in history.events:
        match event.what:
            case EventKind.LAB_STARTING:
                labs[event.lab_id] = event
                if event.session_id in ended:
                    since[event.lab_id] = event.at
            case EventKind.SESSION_ENDED | EventKind.SESSION_GRANTED:
                if event.what == EventKind.SESSION_ENDED:
                    ended.add(event.session_id)
                for lab_id, lab in labs.items():
                    if lab.session_id != event.session_id:
                        continue
                    if event.session_id in ended or lab.host != event.host:
                        since.setdefault(lab_id, event.at)
                    else:
                        since.pop(lab_id, None)
            case EventKind.LAB_ENDED:
                lab = labs.pop(event.lab_id)
                if event.at - since.pop(event.lab_id, event.at) > LEFT_LIMIT:
                    yield Violation(ViolationKind.LEFT_BEHIND, f"{lab} ended only with {event}")
