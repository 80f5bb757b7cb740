"""A lab from its start to its end, and the references to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from neops_remote_lab.core.codes import LiveLabState, OutcomeCode
from neops_remote_lab.store.protocol import DatabaseError, LabStore
from tests.conformance.conftest import Opener
from tests.stores import NOON, OpenStores, lab


async def live_state(labs: LabStore) -> LiveLabState | None:
    found = await labs.live_lab()
    return found.state if found else None


async def test_a_lab_starts_runs_stops_and_ends(open_stores: Opener, labs: LabStore) -> None:
    devices: list[dict[str, Any]] = [{"name": "r1", "mgmt": {"ipv4": "192.0.2.1"}}, {"name": "Zoë"}]
    assert await labs.live_lab() is None
    await labs.starting(lab("one"), NOON)
    assert await labs.live_lab() == lab("one")
    await labs.running("one", devices, NOON)
    running = replace(lab("one"), state=LiveLabState.RUNNING, devices=devices)
    assert await labs.live_lab() == running
    async with open_stores() as other:
        assert await other.labs().live_lab() == running
    await labs.stopping("one")
    assert await live_state(labs) is LiveLabState.STOPPING
    await labs.ended("one", OutcomeCode.RELEASED, "released", NOON)
    assert await labs.live_lab() is None
    await labs.stopping("one")
    assert await labs.live_lab() is None, "a lab that has ended does not stop again"


async def test_a_second_lab_of_a_slot_is_refused_before_anything_is_written(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    with pytest.raises(DatabaseError):
        await labs.starting(lab("two"), NOON)
    assert await labs.live_lab() == lab("one")
    await labs.ended("one", OutcomeCode.LOST, "lost", NOON)
    await labs.starting(lab("two"), NOON)
    assert await labs.live_lab() == lab("two")


async def test_each_slot_of_each_host_has_its_own_lab(stores: OpenStores) -> None:
    slots = [stores.labs(), stores.labs(slot=2), stores.labs("lab-8")]
    for number, slot in enumerate(slots):
        await slot.starting(lab(f"lab-{number}"), NOON)
    assert [await slot.live_lab() for slot in slots] == [lab(f"lab-{number}") for number in range(len(slots))]


async def test_references_are_counted_by_lab_and_the_last_one_stops_it(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.running("one", [{"name": "r1"}], NOON)
    assert [await labs.add_reference("one", "ann", key, NOON) for key in (None, "k", None)] == [1, 2, 3]
    assert await labs.release_reference("one", "k", NOON) == 2
    assert await labs.release_reference("one", None, NOON) == 1
    assert await labs.held_references("one") == 1
    assert await live_state(labs) is LiveLabState.RUNNING
    assert await labs.release_reference("one", None, NOON) == 0
    assert await live_state(labs) is LiveLabState.STOPPING


async def test_one_key_is_one_reference(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.add_reference("one", "ann", "k", NOON)
    with pytest.raises(DatabaseError):
        await labs.add_reference("one", "ann", "k", NOON)
    assert await labs.add_reference("one", "bob", "k", NOON) == 2
    assert await labs.reference_by_key("ann", "k") == ("one", True, None)
    assert await labs.reference_by_key("ann", "other") is None


async def test_a_key_returns_the_result_of_its_latest_acquire(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.add_reference("one", "ann", "k", NOON)
    await labs.release_reference("one", "k", NOON)
    assert await labs.reference_by_key("ann", "k") == ("one", False, None)
    await labs.ended("one", OutcomeCode.RELEASED, "released", NOON)
    assert await labs.reference_by_key("ann", "k") == ("one", False, OutcomeCode.RELEASED)
    await labs.starting(lab("two"), NOON)
    await labs.add_reference("two", "ann", "k", NOON)
    assert await labs.reference_by_key("ann", "k") == ("two", True, None)


async def test_the_end_of_a_lab_ends_its_references(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.add_reference("one", "ann", "k", NOON)
    await labs.ended("one", OutcomeCode.LOST, "lost: its host", NOON)
    assert await labs.live_lab() is None
    assert await labs.held_references("one") == 0
    assert await labs.reference_by_key("ann", "k") == ("one", False, OutcomeCode.LOST)
    assert await labs.last_ended("ann") == ("one", OutcomeCode.LOST, "lost: its host")
    await labs.starting(lab("two"), NOON)
    assert await labs.last_ended("ann") is None


async def test_a_lab_ends_once(labs: LabStore) -> None:
    await labs.starting(lab("one"), NOON)
    await labs.ended("one", OutcomeCode.LOST, "lost: its host", NOON)
    await labs.ended("one", OutcomeCode.RELEASED, "released", NOON + timedelta(days=1))
    assert await labs.last_ended("ann") == ("one", OutcomeCode.LOST, "lost: its host")


async def test_a_reference_to_an_unknown_lab_is_refused(labs: LabStore) -> None:
    with pytest.raises(DatabaseError):
        await labs.add_reference("nowhere", "ann", None, NOON)


async def test_only_labs_that_ended_before_a_time_are_pruned_with_their_references(labs: LabStore) -> None:
    await labs.starting(lab("old"), NOON)
    await labs.add_reference("old", "ann", "k", NOON)
    await labs.ended("old", OutcomeCode.RELEASED, "released", NOON)
    await labs.starting(lab("new", "bob"), NOON)
    await labs.ended("new", OutcomeCode.RELEASED, "released", NOON + timedelta(days=2))
    await labs.starting(lab("live"), NOON)
    assert await labs.prune(NOON + timedelta(days=1)) == 1
    assert await labs.reference_by_key("ann", "k") is None
    assert await labs.last_ended("bob") == ("new", OutcomeCode.RELEASED, "released")
    assert await labs.live_lab() == lab("live")
