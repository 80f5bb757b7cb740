"""The ledger of the fault tests finds each kind of violation, and none in a history without violations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neops_remote_lab.core.codes import EndCode, EventKind, HostState, OutcomeCode
from tests.chaos.history import Event, History, HostChange, ReferenceRow, SessionRow, Start
from tests.chaos.journal import Fact, FactKind
from tests.chaos.ledger import violations
from tests.chaos.replay import ViolationKind


class HistoryBuilder:
    """Adds events to a history. Each event is in a separate transaction, unless its transaction is given."""

    def __init__(self) -> None:
        self.history = History()
        self.number = 0

    def host(self, name: str, state: HostState = HostState.LIVE, *, is_draining: bool = False) -> None:
        self.number += 1
        self.history.host_changes.append(HostChange(self.number, name, state, is_draining, self.number))

    def event(self, what: EventKind, session_id: str, transaction: int = 0, **fields: str | int) -> None:
        self.number += 1
        event = Event(self.number, transaction or self.number, what, session_id, **fields)  # type: ignore[arg-type]
        self.history.events.append(event)

    def fact(self, what: FactKind, session_id: str, key: str = "", asked: float = 0, at: float = 0) -> None:
        self.history.facts.append(Fact(what, session_id, key, asked or self.number, at or self.number + 0.5))

    def join(self, session_id: str) -> None:
        self.event(EventKind.SESSION_JOINED, session_id)
        rank = len(self.history.sessions) + 1
        self.history.sessions.append(SessionRow(session_id, rank, rank, "waiting", self.number))
        self.fact(FactKind.JOINED, session_id)

    def grant(self, session_id: str, host: str, slot: int = 1, transaction: int = 0) -> None:
        self.event(EventKind.SESSION_GRANTED, session_id, transaction, host=host, slot=slot)

    def start(self, lab_id: str, session_id: str, host: str) -> None:
        self.event(EventKind.LAB_STARTING, session_id, lab_id=lab_id, host=host, slot=1)
        self.history.starts.append(Start(host, lab_id))

    def run(self, lab_id: str, session_id: str, host: str) -> None:
        self.event(EventKind.LAB_RUNNING, session_id, lab_id=lab_id, host=host, slot=1)
        self.event(EventKind.REFERENCE_ACQUIRED, session_id, lab_id=lab_id, host=host, slot=1)
        self.history.references.append(ReferenceRow(session_id, f"key-{lab_id}", lab_id, self.number, host=host))
        self.fact(FactKind.ACQUIRED, session_id, f"key-{lab_id}")

    def release(self, lab_id: str, session_id: str, host: str, code: OutcomeCode = OutcomeCode.RELEASED) -> None:
        if code is OutcomeCode.RELEASED:
            self.fact(FactKind.RELEASING, session_id, f"key-{lab_id}")
        self.event(EventKind.LAB_ENDED, session_id, lab_id=lab_id, host=host, slot=1, code=code)
        [*others, row] = self.history.references
        self.history.references = [*others, replace(row, released_at=self.number, lab_code=code)]

    def end(self, session_id: str, code: EndCode = EndCode.CLIENT) -> None:
        if code is EndCode.CLIENT:
            self.fact(FactKind.LEAVING, session_id)
        self.event(EventKind.SESSION_ENDED, session_id, code=code)
        self.history.sessions = [
            replace(row, state="ended", ended_at=self.number, end_code=code) if row.session_id == session_id else row
            for row in self.history.sessions
        ]
        if code is EndCode.CLIENT:
            self.fact(FactKind.LEFT, session_id)


@pytest.fixture
def builder() -> HistoryBuilder:
    """Two hosts with a slot each; ann and bob are active, and cem and dan wait."""
    built = HistoryBuilder()
    for host in ("lab-1", "lab-2"):
        built.host(host)
    for session in ("ann", "bob", "cem", "dan"):
        built.join(session)
    built.grant("bob", "lab-2", transaction=1000)
    built.grant("ann", "lab-1", transaction=1000)
    return built


def kinds(builder: HistoryBuilder) -> list[ViolationKind]:
    return [violation.kind for violation in violations(builder.history)]


def test_nothing_is_found_in_a_history_whose_faults_explain_its_events(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.run("a", "ann", "lab-1")
    builder.host("lab-2", HostState.SILENT)
    builder.event(EventKind.SESSION_REQUEUED, "bob", host="lab-2", slot=1)
    builder.release("a", "ann", "lab-1")
    builder.end("ann")
    builder.grant("bob", "lab-1")
    builder.host("lab-2")
    builder.fact(FactKind.OPERATOR_ENDS, "cem")
    builder.end("cem", EndCode.OPERATOR)
    builder.grant("dan", "lab-2")
    builder.start("d", "dan", "lab-2")
    builder.run("d", "dan", "lab-2")
    for state in (HostState.SILENT, HostState.GONE):
        builder.host("lab-2", state)
    builder.release("d", "dan", "lab-2", OutcomeCode.LOST)
    builder.end("dan", EndCode.HOST_GONE)
    builder.fact(FactKind.ENDED, "dan")
    builder.end("bob")
    assert violations(builder.history) == []


def test_a_session_that_an_operator_moves_becomes_active_at_its_new_position(builder: HistoryBuilder) -> None:
    builder.event(EventKind.SESSION_MOVED, "dan", detail="from rank 4 to rank 0")
    builder.history.sessions = [
        replace(row, rank=0) if row.session_id == "dan" else row for row in builder.history.sessions
    ]
    builder.end("ann")
    builder.grant("dan", "lab-1")
    assert violations(builder.history) == []


def test_a_second_session_on_a_slot_is_found(builder: HistoryBuilder) -> None:
    builder.grant("cem", "lab-1")
    assert kinds(builder) == [ViolationKind.DOUBLE_GRANT]


def test_a_session_that_is_active_twice_or_again_after_its_end_is_found(builder: HistoryBuilder) -> None:
    builder.end("bob")
    builder.grant("ann", "lab-2")
    builder.end("ann")
    builder.grant("ann", "lab-1")
    assert kinds(builder) == [ViolationKind.DOUBLE_GRANT, ViolationKind.DOUBLE_GRANT]


def test_a_session_that_overtakes_another_one_is_found(builder: HistoryBuilder) -> None:
    builder.end("ann")
    builder.grant("dan", "lab-1")
    assert kinds(builder) == [ViolationKind.INVERSION]


def test_a_session_that_joined_after_the_answer_to_another_one_but_is_in_front_of_it_is_found(
    builder: HistoryBuilder,
) -> None:
    joined = {fact.session_id: fact for fact in builder.history.facts}
    late = replace(joined["cem"], asked=joined["dan"].at + 1, at=joined["dan"].at + 2)
    builder.history.facts = [late if fact.session_id == "cem" else fact for fact in builder.history.facts]
    assert kinds(builder) == [ViolationKind.INVERSION]


def test_two_sessions_with_one_rank_are_found(builder: HistoryBuilder) -> None:
    builder.history.sessions[3] = replace(builder.history.sessions[3], rank=3)
    assert kinds(builder) == [ViolationKind.INVERSION]


@pytest.mark.parametrize("state", [HostState.SILENT, HostState.GONE, HostState.LIVE])
def test_a_session_that_becomes_active_on_a_silent_gone_or_draining_host_is_found(
    builder: HistoryBuilder, state: HostState
) -> None:
    builder.end("ann")
    builder.host("lab-1", state, is_draining=state is HostState.LIVE)
    builder.grant("cem", "lab-1")
    assert kinds(builder) == [ViolationKind.CLOSED_HOST]


def test_a_write_for_a_host_that_is_silent_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.host("lab-1", HostState.SILENT)
    builder.run("a", "ann", "lab-1")
    assert kinds(builder) == [ViolationKind.FENCED_WRITE, ViolationKind.FENCED_WRITE]


def test_a_lab_that_runs_after_its_end_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    for state in (HostState.SILENT, HostState.GONE):
        builder.host("lab-1", state)
    builder.event(EventKind.LAB_ENDED, "ann", lab_id="a", host="lab-1", slot=1, code=OutcomeCode.LOST)
    builder.end("ann", EndCode.HOST_GONE)
    builder.host("lab-1")
    builder.event(EventKind.LAB_RUNNING, "ann", lab_id="a", host="lab-1", slot=1)
    assert kinds(builder) == [ViolationKind.FENCED_WRITE]


def test_a_lab_of_a_session_that_is_active_elsewhere_or_waits_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-2")
    builder.start("c", "cem", "lab-1")
    assert kinds(builder) == [ViolationKind.TWO_OWNERS, ViolationKind.TWO_OWNERS]


def test_a_session_that_gets_the_lab_of_another_one_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.event(EventKind.REFERENCE_ACQUIRED, "cem", lab_id="a", host="lab-1", slot=1)
    assert kinds(builder) == [ViolationKind.TWO_OWNERS]


def test_a_second_lab_of_a_session_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.start("b", "ann", "lab-1")
    assert kinds(builder) == [ViolationKind.TWO_OWNERS]


@pytest.mark.parametrize("code", [EndCode.OPERATOR, EndCode.HOST_GONE, EndCode.STALE])
def test_an_end_that_no_fault_explains_is_found(builder: HistoryBuilder, code: EndCode) -> None:
    builder.end("ann", code)
    assert kinds(builder) == [ViolationKind.UNEXPLAINED_END]


def test_a_session_that_waits_again_without_a_fault_is_found(builder: HistoryBuilder) -> None:
    builder.event(EventKind.SESSION_REQUEUED, "ann", host="lab-1", slot=1)
    assert kinds(builder) == [ViolationKind.UNEXPLAINED_END]


def test_a_reference_that_ends_without_a_fault_is_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.run("a", "ann", "lab-1")
    builder.release("a", "ann", "lab-1", OutcomeCode.LOST)
    assert kinds(builder) == [ViolationKind.UNEXPLAINED_END]


def test_acknowledged_calls_that_the_database_does_not_have_are_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.run("a", "ann", "lab-1")
    builder.fact(FactKind.RELEASED, "ann", "key-a")
    builder.fact(FactKind.ACQUIRED, "bob", "key-b")
    builder.fact(FactKind.LEFT, "bob")
    builder.fact(FactKind.JOINED, "eve")
    assert kinds(builder) == [ViolationKind.LOST] * 4


def test_an_acknowledged_call_that_took_effect_only_after_its_answer_is_found(builder: HistoryBuilder) -> None:
    builder.fact(FactKind.LEFT, "ann")
    builder.end("ann")
    assert kinds(builder) == [ViolationKind.LOST]


def test_an_answer_that_no_client_may_get_is_found(builder: HistoryBuilder) -> None:
    builder.fact(FactKind.UNEXPECTED, "ann", "GET /lab: 500")
    assert kinds(builder) == [ViolationKind.UNEXPECTED]


def test_labs_that_collide_start_twice_or_on_the_wrong_host_are_found(builder: HistoryBuilder) -> None:
    builder.start("a", "ann", "lab-1")
    builder.history.collisions.append("lab-1: two labs")
    builder.history.starts += [Start("lab-1", "a"), Start("lab-2", "a")]
    assert set(kinds(builder)) == {ViolationKind.COLLISION}
    assert len(kinds(builder)) == 4
