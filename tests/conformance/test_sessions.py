"""Sessions in the database: joining, promotion, slots, the end, quarantine and history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from neops_remote_lab.core.codes import EndCode, OutcomeCode, QuarantineSource
from neops_remote_lab.store.protocol import DatabaseError, LabStore, SessionStore
from neops_remote_lab.store.rows import Registration, Session
from tests.conformance.conftest import Opener
from tests.stores import NOON, OpenStores, joining, lab


async def states(sessions: SessionStore) -> list[tuple[str, str]]:
    return [(session.session_id, session.state) for session in await sessions.live_sessions()]


def ids(sessions: Iterable[Session]) -> list[str]:
    return [session.session_id for session in sessions]


# The host


async def test_a_host_that_registers_gets_the_boot_id_recorded_before(stores: OpenStores) -> None:
    sessions = stores.sessions()
    assert await sessions.register_host(Registration("boot-1")) is None
    assert await sessions.register_host(Registration("boot-2")) == "boot-1"
    assert await stores.sessions("another host").register_host(Registration("boot-9")) is None


# Joining


async def test_the_first_to_join_is_active_in_the_same_transaction(sessions: SessionStore) -> None:
    first = await sessions.join(joining("ann"), promote=True)
    second = await sessions.join(joining("bob"), promote=False)
    assert (first.state, second.state) == ("active", "waiting")
    assert first.activated_at == NOON
    assert await sessions.live_sessions() == [first, second]


@pytest.mark.parametrize("promote", [True, False])
async def test_a_key_of_a_live_session_gives_that_session_again(sessions: SessionStore, promote: bool) -> None:
    first = await sessions.join(joining("ann", "k"), promote=promote)
    assert await sessions.join(joining("bob", "k"), promote=promote) == first
    assert [session.session_id for session in await sessions.live_sessions()] == ["ann"]
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert (await sessions.join(joining("cem", "k"), promote=promote)).session_id == "cem"


@pytest.mark.parametrize("promote", [True, False])
async def test_concurrent_joins_keep_their_order_and_one_key_is_one_session(
    sessions: SessionStore, promote: bool
) -> None:
    keys = ["a", None, "b", "a", None, "b", "a"]
    joins = [sessions.join(joining(f"s{n}", key), promote=promote) for n, key in enumerate(keys)]
    found = [session.session_id for session in await asyncio.gather(*joins)]
    assert found == ["s0", "s1", "s2", "s0", "s4", "s2", "s0"]
    live = await sessions.live_sessions()
    assert [session.session_id for session in live] == ["s0", "s1", "s2", "s4"]
    assert [session.state for session in live] == ["active" if promote else "waiting", *["waiting"] * 3]


async def test_numbers_and_ranks_only_grow_even_in_an_empty_queue(sessions: SessionStore) -> None:
    given = []
    for round_ in range(3):
        names = [f"{name}-{round_}" for name in ("ann", "bob")]
        given += await asyncio.gather(*(sessions.join(joining(name), promote=False) for name in names))
        await sessions.end(names, EndCode.CLIENT, "done", NOON)
        await sessions.prune(NOON + timedelta(days=1))
    for counted in ([session.number for session in given], [session.rank for session in given]):
        assert counted == sorted(set(counted))


async def test_labels_and_times_are_read_as_written(sessions: SessionStore) -> None:
    elsewhere = datetime.fromisoformat("2026-05-01T14:00:00.123456+02:00")
    label = "Zoë 🧪 \"'; DROP TABLE"
    for promote in (True, False):
        one = replace(joining(f"s-{promote}", f"k-{label}"), purpose=label, now=elsewhere)
        joined = await sessions.join(replace(one, key=f"{promote}"), promote=promote)
        assert (joined.client, joined.purpose) == (f"s-{promote}@office", label)
        assert joined.created_at == elsewhere
        assert joined.created_at.tzinfo == UTC
    assert {session.purpose for session in await sessions.live_sessions()} == {label}


async def test_a_join_is_seen_by_another_connection_once_it_is_answered(
    open_stores: Opener, sessions: SessionStore
) -> None:
    joined = await sessions.join(joining("ann"), promote=True)
    async with open_stores() as other:
        assert await other.sessions().live_sessions() == [joined]


async def test_a_cancelled_join_is_still_written(sessions: SessionStore) -> None:
    task = asyncio.ensure_future(sessions.join(joining("ann"), promote=True))
    other = asyncio.ensure_future(sessions.join(joining("bob"), promote=True))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await other).state == "waiting"
    assert await states(sessions) == [("ann", "active"), ("bob", "waiting")]


# Several queues and hosts


async def test_a_host_serves_its_own_queue(stores: OpenStores, sessions: SessionStore) -> None:
    other = stores.sessions("lab-8", "big labs")
    await other.register_host(Registration("boot-1"))
    await sessions.join(joining("ann", "k"), promote=True)
    assert (await other.join(joining("bob", "k"), promote=True)).state == "active"
    assert await states(other) == [("bob", "active")]
    assert await states(sessions) == [("ann", "active")]


async def test_free_slots_of_all_hosts_go_to_the_head_of_their_queue(
    stores: OpenStores, sessions: SessionStore
) -> None:
    other = stores.sessions("lab-8")
    await other.register_host(Registration("boot-1", 2))
    for name in ("ann", "bob", "cem", "dan"):
        await sessions.join(joining(name), promote=False)
    promoted = await sessions.promote(NOON)
    assert [(session.session_id, session.host, session.slot) for session in promoted] == [
        ("ann", "lab-7", 1),
        ("bob", "lab-8", 1),
        ("cem", "lab-8", 2),
    ]
    assert await other.promote(NOON) == ()
    assert await sessions.live_sessions() == await other.live_sessions()
    ending = await sessions.end(["cem"], EndCode.CLIENT, "done", NOON)
    assert [(session.session_id, session.host, session.slot) for session in ending.promoted] == [("dan", "lab-8", 2)]


# Slots


async def slots(sessions: SessionStore) -> dict[str, int | None]:
    """The slot of each live session."""
    return {session.session_id: session.slot for session in await sessions.live_sessions()}


async def test_as_many_sessions_are_active_as_the_host_has_slots(sessions: SessionStore) -> None:
    await sessions.register_host(Registration("boot-1", 3))
    joined = [await sessions.join(joining(name), promote=True) for name in ("ann", "bob", "cem", "dan")]
    assert [session.slot for session in joined] == [1, 2, 3, None]
    assert [session.host for session in joined] == ["lab-7", "lab-7", "lab-7", None]
    assert await sessions.live_sessions() == joined


async def test_several_free_slots_go_to_the_first_in_the_queue(sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem", "dan"):
        await sessions.join(joining(name), promote=False)
    await sessions.register_host(Registration("boot-1", 3))
    promoted = await sessions.promote(NOON)
    assert [(session.session_id, session.slot) for session in promoted] == [("ann", 1), ("bob", 2), ("cem", 3)]
    assert await sessions.promote(NOON) == ()


async def test_sessions_that_end_together_are_replaced_by_as_many(sessions: SessionStore) -> None:
    await sessions.register_host(Registration("boot-1", 3))
    for name in ("ann", "bob", "cem", "dan", "eve", "fay"):
        await sessions.join(joining(name), promote=True)
    ending = await sessions.end(["cem", "ann", "fay"], EndCode.CLIENT, "done", NOON)
    assert [(session.session_id, session.slot) for session in ending.promoted] == [("dan", 1), ("eve", 3)]
    assert await slots(sessions) == {"dan": 1, "bob": 2, "eve": 3}


async def test_sessions_keep_their_slots_when_the_host_offers_fewer(stores: OpenStores, sessions: SessionStore) -> None:
    await sessions.register_host(Registration("boot-1", 3))
    for name in ("ann", "bob", "cem", "dan", "eve"):
        await sessions.join(joining(name), promote=True)
    await sessions.register_host(Registration("boot-2", 1))
    assert await sessions.occupied_slots() == [1, 2, 3]
    assert (await sessions.end(["cem", "bob"], EndCode.CLIENT, "done", NOON)).promoted == ()
    assert ids((await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)).promoted) == ["dan"]
    assert await sessions.occupied_slots() == [1]
    await sessions.register_host(Registration("boot-3", 2))
    assert ids(await sessions.promote(NOON)) == ["eve"]


async def test_a_slot_is_occupied_while_its_lab_is_live(stores: OpenStores, sessions: SessionStore) -> None:
    third: LabStore = stores.labs(slot=3)
    await third.starting(lab("a"), NOON)
    await stores.labs("lab-8", 2).starting(lab("b"), NOON)
    assert await sessions.occupied_slots() == [3]
    await third.ended("a", OutcomeCode.RELEASED, "released", NOON)
    assert await sessions.occupied_slots() == []


async def test_two_live_labs_of_a_host_never_have_the_same_number(stores: OpenStores, sessions: SessionStore) -> None:
    first, second, elsewhere = stores.labs(slot=1), stores.labs(slot=2), stores.labs("lab-8")
    for labs, name in ((first, "a"), (second, "b"), (elsewhere, "c")):
        await labs.starting(lab(name), NOON)
    await first.running("a", [], NOON, 7)
    await elsewhere.running("c", [], NOON, 7)
    with pytest.raises(DatabaseError):
        await second.running("b", [], NOON, 7)
    await first.ended("a", OutcomeCode.RELEASED, "released", NOON)
    await second.running("b", [], NOON, 7)
    live = await second.live_lab()
    assert live
    assert live.lab_number == 7


# Ending


async def test_the_end_of_a_session_promotes_the_next_one_in_the_same_transaction(sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    ending = await sessions.end(["ann"], EndCode.CLIENT, "done", NOON + timedelta(minutes=1))
    assert ending.ended == ("ann",)
    [promoted] = ending.promoted
    assert (promoted.session_id, promoted.activated_at) == ("bob", NOON + timedelta(minutes=1))
    assert await states(sessions) == [("bob", "active"), ("cem", "waiting")]
    assert await sessions.ended("ann") == (EndCode.CLIENT, "done")


async def test_several_sessions_that_end_together_promote_one(sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem", "dan"):
        await sessions.join(joining(name), promote=True)
    ending = await sessions.end(["bob", "ann", "nobody"], EndCode.STALE, "timeout", NOON)
    assert ending.ended == ("bob", "ann")
    assert ids(ending.promoted) == ["cem"]
    assert await sessions.ended("bob") == (EndCode.STALE, "timeout")
    assert await sessions.ended("cem") is None
    assert await sessions.ended("nobody") is None


async def test_an_ended_session_cannot_end_again(sessions: SessionStore) -> None:
    await sessions.join(joining("ann"), promote=True)
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert (await sessions.end(["ann"], EndCode.STALE, "again", NOON)).ended == ()
    assert await sessions.ended("ann") == (EndCode.CLIENT, "done")


# Quarantine


async def test_no_session_becomes_active_on_a_quarantined_host(sessions: SessionStore) -> None:
    quarantine = (QuarantineSource.SERVER, "a container is left")
    assert await sessions.set_quarantine("a container is left", NOON) == quarantine
    assert (await sessions.join(joining("ann"), promote=True)).state == "waiting"
    assert await sessions.promote(NOON) == ()
    assert await sessions.quarantine() == quarantine
    assert await sessions.set_quarantine(None, NOON) is None
    assert await sessions.quarantine() is None
    assert ids(await sessions.promote(NOON)) == ["ann"]


async def test_a_quarantine_applies_to_one_host(stores: OpenStores, sessions: SessionStore) -> None:
    other = stores.sessions("lab-8")
    await other.register_host(Registration("boot-1"))
    await sessions.set_quarantine("a container is left", NOON)
    assert await other.quarantine() is None
    joined = await sessions.join(joining("ann"), promote=True)
    assert (joined.session_id, joined.host) == ("ann", "lab-8")
    assert (await sessions.join(joining("bob"), promote=True)).state == "waiting"


# History


async def test_only_sessions_that_ended_before_a_time_are_pruned(sessions: SessionStore) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    await sessions.end(["bob"], EndCode.CLIENT, "done", NOON + timedelta(days=2))
    assert await sessions.prune(NOON + timedelta(days=1)) == 1
    assert await sessions.ended("ann") is None
    assert await sessions.ended("bob")
    assert await states(sessions) == [("cem", "active")]


async def test_active_times_are_the_seconds_from_the_promotion_to_the_end(sessions: SessionStore) -> None:
    for name, seconds in (("ann", 10), ("bob", 30)):
        await sessions.join(joining(name), promote=True)
        await sessions.end([name], EndCode.CLIENT, "done", NOON + timedelta(seconds=seconds))
    await sessions.set_quarantine("nobody is to become active", NOON)
    await sessions.join(joining("cem"), promote=True)
    await sessions.end(["cem"], EndCode.CLIENT, "never active", NOON + timedelta(seconds=50))
    assert await sessions.latest_holds() == pytest.approx([10, 30], abs=0.01)
    assert await sessions.latest_holds(1) == pytest.approx([30], abs=0.01)


async def test_last_seen_times_are_written_for_many_sessions_and_for_none(sessions: SessionStore) -> None:
    joined = [await sessions.join(joining(name), promote=True) for name in ("ann", "bob")]
    await sessions.record_last_seen({"ann": NOON + timedelta(hours=1), "nobody": NOON})
    await sessions.record_last_seen({})
    assert await sessions.live_sessions() == joined
