"""The recorded memory usage of labs and of their nodes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from neops_remote_lab.core.codes import OutcomeCode
from neops_remote_lab.core.identity import Identity
from tests.stores import NOON, OpenStores, lab

MIB = 1 << 20


async def test_the_highest_memory_of_a_topology_is_recorded(stores: OpenStores) -> None:
    labs, memory = stores.labs(), stores.memory()
    topology, other = Identity("a" * 64, None), Identity("a" * 64, "b" * 64)
    assert await memory.of_topology(topology) is None
    for name, used in (("first", 90 * MIB), ("second", 70 * MIB)):
        await labs.starting(lab(name), NOON)
        await labs.ended(name, OutcomeCode.RELEASED, "released", NOON)
        await memory.record(name, used, [], NOON)
    assert await memory.of_topology(topology) == 90 * MIB
    assert await memory.of_topology(other) is None
    await labs.starting(replace(lab("third"), extra_sha256="b" * 64), NOON)
    await memory.record("third", 5 << 40, [], NOON)
    assert await memory.of_topology(other) == 5 << 40


async def test_an_image_needs_what_nearly_all_of_its_nodes_used(stores: OpenStores) -> None:
    memory = stores.memory()
    await memory.record("a", MIB, [("frr", size * MIB) for size in range(1, 101)], NOON)
    await memory.record("a", MIB, [("linux", 7 * MIB), ("linux", 9 * MIB), ("bird", 3 * MIB)], NOON)
    assert await memory.of_images({"frr", "linux", "unknown"}) == {"frr": 95 * MIB, "linux": 9 * MIB}
    assert await memory.of_images(set()) == {}


async def test_only_the_latest_nodes_of_an_image_count(stores: OpenStores) -> None:
    memory = stores.memory()
    await memory.record("old", MIB, [("frr", 9000 * MIB)] * 300, NOON)
    await memory.record("new", MIB, [("frr", 30 * MIB)] * 200, NOON)
    assert await memory.of_images({"frr"}) == {"frr": 30 * MIB}


async def test_old_measurements_are_pruned(stores: OpenStores) -> None:
    memory = stores.memory()
    await memory.record("old", MIB, [("frr", 1), ("linux", 1)], NOON)
    await memory.record("new", MIB, [("linux", 2)], NOON + timedelta(days=2))
    await memory.prune(NOON + timedelta(days=1))
    assert await memory.of_images({"frr", "linux"}) == {"linux": 2}
