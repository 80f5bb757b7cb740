"""Replays the event table and reports events that violate an invariant of the queue."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from neops_remote_lab.core.codes import ENDED, EndCode, EventKind, HostState, OutcomeCode, SessionState
from tests.chaos.history import Event, History, HostChange
from tests.chaos.journal import FactKind

Rank: TypeAlias = tuple[int, int]
"""The sort key of waiting sessions: rank, then number."""


class ViolationKind(StrEnum):
    """The kind of a violation."""

    DOUBLE_GRANT = "double grant"
    """Two sessions became active on one slot, one session on two slots, or a session after its end."""
    INVERSION = "inversion"
    """A session became active before one that was in front of it, or two joined with one rank."""
    CLOSED_HOST = "closed host"
    """A session became active on a host that was silent, gone or draining."""
    FENCED_WRITE = "fenced write"
    """A server wrote for its host after others had declared it silent or gone, or about a lab that they had ended."""
    TWO_OWNERS = "two owners"
    """A lab, or a reference, of a session that is not active on that host, or two labs of a session or of a slot."""
    UNEXPLAINED_END = "unexplained end"
    """A session, a lab or a reference ended, or a session waits again, and neither a client nor a fault explains it."""
    LOST = "lost"
    """An acknowledged call is not in the database."""
    UNEXPECTED = "unexpected"
    """An answer that no client may get, or the end of a server that nobody has ended."""
    FOREIGN_STREAM = "foreign stream"
    """An event stream delivered lines of the lab of another session."""
    HUNG = "hung"
    """A call lasted long after its session, or longer than it may be held."""
    LEFT_BEHIND = "left behind"
    """A lab existed long after its session had ended or become active on another host."""
    COLLISION = "collision"
    """The netlab of a host had two labs at once that are not separate, or started one that is not its own."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken."""

    kind: ViolationKind
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass
class _Session:
    rank: Rank
    state: str = SessionState.WAITING
    host: str | None = None
    """The host of the latest grant."""
    slot: int | None = None

    @property
    def seat(self) -> tuple[str | None, int | None]:
        return self.host, self.slot


@dataclass
class Replay:
    """The state of the queue between two events."""

    history: History
    sessions: dict[str, _Session] = field(default_factory=dict)
    hosts: dict[str, HostChange] = field(default_factory=dict)
    labs: dict[str, Event] = field(default_factory=dict)
    """The live labs, with the events of their starts."""
    in_advance: set[str] = field(default_factory=set)
    """All labs that were started while their sessions were not active on that host."""
    used_in_advance: set[str] = field(default_factory=set)
    """Those of them that their sessions acquired."""
    found: list[Violation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._first_ranks = _first_ranks(self.history)
        self._leaving = {fact.session_id for fact in self.history.facts if fact.what is FactKind.LEAVING}
        self._by_operator = {fact.session_id for fact in self.history.facts if fact.what is FactKind.OPERATOR_ENDS}
        self._grants: dict[int, list[Event]] = defaultdict(list)
        for event in self.history.events:
            if event.what == EventKind.SESSION_GRANTED:
                self._grants[event.transaction].append(event)

    def run(self) -> list[Violation]:
        """Replay all events in order. Returns the violations."""
        happened: list[Event | HostChange] = [*self.history.events, *self.history.host_changes]
        for each in sorted(happened, key=lambda each: each.number):
            if isinstance(each, HostChange):
                self.hosts[each.host] = each
            else:
                self._apply(each)
        return self.found

    def _apply(self, event: Event) -> None:
        match event.what:
            case EventKind.SESSION_JOINED:
                self._joined(event)
            case EventKind.SESSION_MOVED:
                self._moved(event)
            case EventKind.SESSION_GRANTED:
                self._granted(event)
            case EventKind.SESSION_REQUEUED:
                self._requeued(event)
            case EventKind.SESSION_ENDED:
                self._ended(event)
            case EventKind.LAB_STARTING:
                self._starting(event)
            case EventKind.LAB_RUNNING | EventKind.LAB_STOPPING | EventKind.REFERENCE_ACQUIRED:
                self._check_lab(event)
            case EventKind.LAB_ENDED:
                self._lab_ended(event)

    def _broken(self, kind: ViolationKind, event: Event, text: str) -> None:
        about = event.session_id if event.lab_id is None else f"lab {event.lab_id} of {event.session_id}"
        self.found.append(Violation(kind, f"event {event.number}, {about}: {text}"))

    def _of(self, event: Event) -> _Session:
        assert event.session_id
        return self.sessions[event.session_id]

    # Sessions

    def _joined(self, event: Event) -> None:
        assert event.session_id
        self.sessions[event.session_id] = _Session(self._first_ranks[event.session_id])

    def _moved(self, event: Event) -> None:
        session, (_, rank) = self._of(event), _ranks(event)
        session.rank = rank, session.rank[1]

    def _granted(self, event: Event) -> None:
        """Check all grants of a transaction together, because the database updates its sessions in any order."""
        grants = self._grants.pop(event.transaction, [])
        self._check_order(grants)
        for grant in grants:
            session = self._of(grant)
            if session.state != SessionState.WAITING:
                self._broken(ViolationKind.DOUBLE_GRANT, grant, f"becomes active, but is {session.state}")
            seat = grant.host, grant.slot
            if others := [name for name, other in self._active() if other.seat == seat and name != grant.session_id]:
                self._broken(ViolationKind.DOUBLE_GRANT, grant, f"becomes active on the slot {seat} of {others}")
            host = self.hosts.get(grant.host or "")
            if host is None or host.state != HostState.LIVE or host.is_draining:
                self._broken(ViolationKind.CLOSED_HOST, grant, f"becomes active on {host}")
            session.state, session.host, session.slot = SessionState.ACTIVE, grant.host, grant.slot

    def _check_order(self, grants: list[Event]) -> None:
        waiting = sorted(
            (each.rank, name) for name, each in self.sessions.items() if each.state == SessionState.WAITING
        )
        first = {name for _, name in waiting[: len(grants)]}
        for grant in grants:
            if self._of(grant).state == SessionState.WAITING and grant.session_id not in first:
                self._broken(ViolationKind.INVERSION, grant, f"becomes active, but {sorted(first)} were in front of it")

    def _requeued(self, event: Event) -> None:
        session = self._of(event)
        if session.state != SessionState.ACTIVE or self.hosts[session.host or ""].state != HostState.SILENT:
            self._broken(
                ViolationKind.UNEXPLAINED_END, event, f"waits again, but was {session.state} on {session.host}"
            )
        session.state = SessionState.WAITING

    def _ended(self, event: Event) -> None:
        session = self._of(event)
        if session.state == ENDED:
            self._broken(ViolationKind.DOUBLE_GRANT, event, "ends twice")
        explained: dict[str | None, bool] = {
            EndCode.CLIENT: event.session_id in self._leaving,
            EndCode.OPERATOR: event.session_id in self._by_operator,
            EndCode.HOST_GONE: session.host is not None and self.hosts[session.host].state == HostState.GONE,
        }
        if not explained.get(event.code):
            self._broken(ViolationKind.UNEXPLAINED_END, event, f"ends with {event.code}")
        session.state = ENDED

    def _active(self) -> Iterator[tuple[str, _Session]]:
        return ((name, each) for name, each in self.sessions.items() if each.state == SessionState.ACTIVE)

    # Labs

    def _starting(self, event: Event) -> None:
        assert event.lab_id
        self._check_fence(event)
        session = self._of(event)
        # Its session may end at the moment of the start, which is then interrupted.
        if session.host != event.host or session.state == SessionState.WAITING:
            self.in_advance.add(event.lab_id)
            if session.state == SessionState.ACTIVE or event.host not in self.history.starting_in_advance:
                self._broken(
                    ViolationKind.TWO_OWNERS, event, f"starts on {event.host}; {session.state} on {session.host}"
                )
        for lab_id, lab in self.labs.items():
            if (lab.host, lab.slot) == (event.host, event.slot) or self._are_of_one_session(lab, event):
                self._broken(
                    ViolationKind.TWO_OWNERS, event, f"starts beside lab {lab_id} of {lab.session_id} on {lab.host}"
                )
        self.labs[event.lab_id] = event

    def _are_of_one_session(self, lab: Event, other: Event) -> bool:
        """Whether a session has two labs, apart from labs in advance on hosts on which it is not active."""
        if lab.session_id != other.session_id:
            return False
        return lab.host == other.host or self.in_advance.isdisjoint({lab.lab_id, other.lab_id})

    def _lab_ended(self, event: Event) -> None:
        if event.code != OutcomeCode.LOST:  # others end the labs of a host that is gone
            self._check_fence(event)
        self.labs.pop(event.lab_id or "", None)

    def _check_fence(self, event: Event) -> None:
        host = self.hosts.get(event.host or "")
        if host is None or host.state != HostState.LIVE:
            self._broken(ViolationKind.FENCED_WRITE, event, f"{event.what} on {host}")

    def _check_lab(self, event: Event) -> None:
        self._check_fence(event)
        lab = self.labs.get(event.lab_id or "")
        if lab is None:
            self._broken(ViolationKind.FENCED_WRITE, event, f"{event.what}, but the lab has ended")
        elif lab.session_id != event.session_id:
            self._broken(ViolationKind.TWO_OWNERS, event, f"{event.what}, but the lab is of {lab.session_id}")
        elif event.what == EventKind.REFERENCE_ACQUIRED:
            session = self._of(event)
            if session.state == SessionState.WAITING or session.host != event.host:
                where = f"{session.state} on {session.host}"
                self._broken(ViolationKind.TWO_OWNERS, event, f"acquired on {event.host}; {where}")
            self.used_in_advance |= {event.lab_id or ""} & self.in_advance


def replay(history: History) -> list[Violation]:
    """The violations that the event table shows."""
    return Replay(history).run()


def _first_ranks(history: History) -> dict[str, Rank]:
    """The rank with which each session joined."""
    ranks = {row.session_id: (row.rank, row.number) for row in history.sessions}
    for event in reversed(history.events):
        if event.what == EventKind.SESSION_MOVED and event.session_id in ranks:
            ranks[event.session_id] = _ranks(event)[0], ranks[event.session_id][1]
    return ranks


def moved_sessions(history: History) -> set[str]:
    """The sessions whose ranks an operator has changed."""
    return {event.session_id for event in history.events if event.what == EventKind.SESSION_MOVED and event.session_id}


def _ranks(event: Event) -> tuple[int, int]:
    """The ranks of a moved session: before and after."""
    before, after = re.findall(r"-?\d+", event.detail or "")
    return int(before), int(after)
