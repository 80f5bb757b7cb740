"""The plan of the fault tests, which its seed determines."""

from __future__ import annotations

from collections import Counter

from tests.chaos.faults import DATABASE, LENGTHS, NEED_NETWORK, WITHOUT_HOST, Fault, plan


def test_a_seed_determines_the_plan() -> None:
    assert plan(7, 100, hosts=3) == plan(7, 100, hosts=3)
    assert plan(7, 100, hosts=3) != plan(8, 100, hosts=3)


def test_a_plan_has_every_fault_and_every_host() -> None:
    steps = plan(7, 1000, hosts=3)
    assert Counter(step.fault for step in steps).keys() == set(Fault)
    for step in steps:
        assert (step.target == DATABASE) is (step.fault in WITHOUT_HOST)
        assert step.length <= 1.3 * max(LENGTHS)
    assert {step.target for step in steps} == {DATABASE, 1, 2, 3}


def test_faults_that_need_network_namespaces_can_be_excluded() -> None:
    assert not NEED_NETWORK & {step.fault for step in plan(7, 1000, hosts=3, without=NEED_NETWORK)}
