"""The next step of a lab: a table of cases, and properties that hold in every situation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neops_remote_lab.core.codes import LiveLabState, OutcomeCode
from neops_remote_lab.core.identity import Identity, identity_of
from neops_remote_lab.netlab.lab_life import Decision, Observed, Operation, Step, Wanted, next_step

MINE = Identity("a" * 64)
OTHER = Identity("b" * 64)
MINE_WITH_FILES = identity_of(MINE.topology, {"vars.yml": "c" * 64})
SWEEP_INTERVAL = 60.0


def lab(state: LiveLabState = LiveLabState.RUNNING, references: int = 0, **more: object) -> Observed:
    """A lab of this process, whose session is active."""
    settings: dict[str, object] = {"identity": MINE, "in_session": True, "held": True} | more
    return Observed(state, references=references, **settings)  # type: ignore[arg-type]


NO_LAB = Observed()
UNREFERENCED, REFERENCED = lab(), lab(references=2)
STARTING = lab(LiveLabState.STARTING, operation=Operation.START, awaited=True)
ABANDONED_START = lab(LiveLabState.STARTING, operation=Operation.START)
STOPPING = lab(LiveLabState.STOPPING, 1, operation=Operation.STOP)
OF_AN_ENDED_SESSION = lab(references=1, in_session=False)


@pytest.mark.parametrize(
    ("seen", "wanted", "reuse", "step"),
    [
        pytest.param(NO_LAB, MINE, True, Step.START, id="no lab"),
        pytest.param(NO_LAB, MINE, False, Step.START, id="no lab, a fresh one is wanted"),
        pytest.param(REFERENCED, MINE, True, Step.SHARE, id="the same topology is shared"),
        pytest.param(REFERENCED, MINE, False, Step.REFUSE, id="a fresh lab while the same is in use"),
        pytest.param(REFERENCED, OTHER, True, Step.REFUSE, id="another topology is in use"),
        pytest.param(REFERENCED, OTHER, False, Step.REFUSE, id="another topology is in use, a fresh one is wanted"),
        pytest.param(REFERENCED, MINE_WITH_FILES, True, Step.REFUSE, id="the same topology with other extra files"),
        pytest.param(UNREFERENCED, MINE, True, Step.SHARE, id="a lab that nobody took"),
        pytest.param(UNREFERENCED, MINE, False, Step.SHARE, id="a lab that nobody took is fresh"),
        pytest.param(UNREFERENCED, OTHER, True, Step.STOP, id="a lab that nobody took makes room"),
        pytest.param(UNREFERENCED, MINE_WITH_FILES, False, Step.STOP, id="extra files make it another one"),
        pytest.param(STARTING, MINE, True, Step.JOIN, id="the same topology is on its way"),
        pytest.param(STARTING, MINE, False, Step.REFUSE, id="a fresh lab while the same is on its way"),
        pytest.param(STARTING, OTHER, True, Step.REFUSE, id="another topology is on its way"),
        pytest.param(ABANDONED_START, MINE, True, Step.WAIT, id="the same is on its way for a client that has left"),
        pytest.param(ABANDONED_START, OTHER, True, Step.WAIT, id="another is on its way for a client that has left"),
        pytest.param(STOPPING, MINE, True, Step.WAIT, id="the end of the same is near"),
        pytest.param(STOPPING, OTHER, False, Step.WAIT, id="the end of another is near"),
        pytest.param(lab(leftovers_for=1.0), MINE, True, Step.REFUSE, id="something is left of it"),
        pytest.param(Observed(leftovers_for=math.inf), MINE, True, Step.REFUSE, id="something is left of another lab"),
        pytest.param(lab(held=False), MINE, True, Step.ADOPT, id="it is not taken over yet"),
        pytest.param(lab(LiveLabState.STOPPING), MINE, True, Step.STOP, id="its teardown could not be written down"),
    ],
)
def test_an_acquire_depends_on_identity_state_and_references(
    seen: Observed, wanted: Identity, reuse: bool, step: Step
) -> None:
    assert next_step(seen, Wanted(wanted, reuse, same_session=True)).step is step


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        pytest.param(OF_AN_ENDED_SESSION, Decision(Step.STOP, OutcomeCode.SESSION_ENDED), id="its session has ended"),
        pytest.param(lab(in_session=False, operation=Operation.START), Decision(Step.WAIT), id="and it still starts"),
        pytest.param(lab(in_session=False, held=False), Decision(Step.ADOPT), id="and it is not taken over yet"),
    ],
)
def test_the_lab_of_another_session_is_stopped(seen: Observed, decision: Decision) -> None:
    assert next_step(seen, Wanted(MINE, reuse=True, same_session=False)) == decision


@pytest.mark.parametrize("seen", [UNREFERENCED, REFERENCED])
@pytest.mark.parametrize("wanted", [MINE, OTHER])
def test_the_lab_of_another_active_session_is_never_shared_or_replaced(seen: Observed, wanted: Identity) -> None:
    assert next_step(seen, Wanted(wanted, reuse=True, same_session=False)).step is Step.REFUSE


@pytest.mark.parametrize(
    ("seen", "decision"),
    [
        pytest.param(NO_LAB, Decision(Step.NOTHING), id="no lab"),
        pytest.param(REFERENCED, Decision(Step.NOTHING), id="a lab in use"),
        pytest.param(UNREFERENCED, Decision(Step.NOTHING), id="a lab that its session has not taken yet"),
        pytest.param(OF_AN_ENDED_SESSION, Decision(Step.STOP, OutcomeCode.SESSION_ENDED), id="its session has ended"),
        pytest.param(STARTING, Decision(Step.WAIT), id="it starts"),
        pytest.param(
            lab(LiveLabState.STARTING, operation=Operation.START, in_session=False),
            Decision(Step.INTERRUPT),
            id="it starts, and its session has ended",
        ),
        pytest.param(STOPPING, Decision(Step.WAIT), id="it stops"),
        pytest.param(
            lab(LiveLabState.STOPPING), Decision(Step.STOP, OutcomeCode.RELEASED), id="nobody goes on with its teardown"
        ),
        pytest.param(lab(held=False), Decision(Step.ADOPT), id="an earlier server has started it"),
        pytest.param(lab(leftovers_for=1.0), Decision(Step.WAIT), id="something is left since a moment"),
        pytest.param(
            lab(leftovers_for=SWEEP_INTERVAL), Decision(Step.STOP, OutcomeCode.LOST), id="something is left of it"
        ),
        pytest.param(Observed(leftovers_for=math.inf), Decision(Step.SWEEP), id="something is left of another lab"),
    ],
)
def test_without_an_acquire_pending_steps_are_taken(seen: Observed, decision: Decision) -> None:
    assert next_step(seen, sweep_interval=SWEEP_INTERVAL) == decision


identities = st.sampled_from([MINE, OTHER, MINE_WITH_FILES])
situations = st.builds(
    Observed,
    state=st.none() | st.sampled_from(LiveLabState),
    identity=identities,
    references=st.integers(0, 3),
    in_session=st.booleans(),
    held=st.booleans(),
    operation=st.none() | st.sampled_from(Operation),
    awaited=st.booleans(),
    leftovers_for=st.none() | st.floats(0, 2 * SWEEP_INTERVAL),
)
requests = st.none() | st.builds(Wanted, identities, st.booleans(), st.booleans())


@given(situations, requests)
def test_no_operation_begins_during_another_one(seen: Observed, wanted: Wanted | None) -> None:
    step = next_step(seen, wanted, sweep_interval=SWEEP_INTERVAL).step
    if seen.operation:
        assert step in {Step.WAIT, Step.JOIN, Step.REFUSE, Step.INTERRUPT}


@given(situations, requests)
def test_a_lab_starts_only_without_another_lab_and_without_leftovers(seen: Observed, wanted: Wanted | None) -> None:
    if next_step(seen, wanted, sweep_interval=SWEEP_INTERVAL).step is Step.START:
        assert wanted
        assert (seen.state, seen.operation, seen.leftovers_for) == (None, None, None)


@given(situations, requests)
def test_a_lab_with_references_in_an_active_session_is_kept(seen: Observed, wanted: Wanted | None) -> None:
    if wanted and not wanted.same_session and seen.in_session:
        return  # the sessions of a slot are never active at the same time
    in_use = seen.state is LiveLabState.RUNNING and seen.held and seen.in_session and seen.references
    if in_use and seen.leftovers_for is None:
        assert next_step(seen, wanted, sweep_interval=SWEEP_INTERVAL).step not in {Step.STOP, Step.SWEEP, Step.ADOPT}


@given(situations, requests)
def test_a_shared_lab_has_the_requested_identity(seen: Observed, wanted: Wanted | None) -> None:
    if next_step(seen, wanted, sweep_interval=SWEEP_INTERVAL).step in {Step.SHARE, Step.JOIN}:
        assert wanted
        assert seen.identity == wanted.identity


@given(situations)
def test_each_situation_ends_in_a_stable_state(seen: Observed) -> None:
    """If every step succeeds, no step is left after a few."""
    steps = []
    while (step := next_step(seen, sweep_interval=0).step) is not Step.NOTHING:
        steps.append(step)
        assert len(steps) <= 5, steps
        match step:
            case Step.WAIT if seen.operation is Operation.START:
                seen = lab(in_session=seen.in_session)
            case Step.ADOPT:
                seen = lab(seen.state or LiveLabState.RUNNING, in_session=seen.in_session)
            case Step.SWEEP:
                seen = Observed(seen.state, seen.identity, in_session=seen.in_session, held=seen.held)
            case _:
                seen = Observed()


def test_extra_files_are_part_of_a_labs_identity_by_name_and_content() -> None:
    topology, one, two = MINE.topology, "1" * 64, "2" * 64
    alike = identity_of(topology, {"a.yml": one, "b/c.yml": two})
    assert identity_of(topology, {"b/c.yml": two, "a.yml": one}) == alike
    different = [
        identity_of(topology, {}),
        identity_of(topology, {"a.yml": one}),
        identity_of(topology, {"a.yml": two, "b/c.yml": one}),
        identity_of(topology, {"b.yml": one, "b/c.yml": two}),
        identity_of(OTHER.topology, {"a.yml": one, "b/c.yml": two}),
    ]
    assert alike not in different
    assert len(set(different)) == len(different)
