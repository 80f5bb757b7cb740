"""Several lab hosts of one queue: beats, hosts that are declared silent or gone and register again, and fencing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import pytest_asyncio

from neops_remote_lab.core.codes import EndCode, HostState, OutcomeCode
from neops_remote_lab.store.protocol import Fenced, SessionStore
from neops_remote_lab.store.rows import Host, Registration
from tests.conformance.conftest import Opener
from tests.stores import HOST, NOON, OpenStores, joining, lab

OTHER = "lab-8"


@pytest_asyncio.fixture
async def other(stores: OpenStores, sessions: SessionStore) -> SessionStore:
    """The queue as the other host's server uses it. Both hosts have two slots."""
    await sessions.register_host(Registration("boot-1", 2, "http://lab-7:8000", "first"))
    store = stores.sessions(OTHER)
    await store.register_host(Registration("boot-2", 2, "http://lab-8:8000", "second"))
    return store


async def find_host(sessions: SessionStore, name: str) -> Host:
    return next(host for host in await sessions.hosts() if host.name == name)


async def hosts_by_session(sessions: SessionStore) -> dict[str, str | None]:
    """The host of each live session."""
    return {session.session_id: session.host for session in await sessions.live_sessions()}


async def test_all_servers_see_all_hosts(sessions: SessionStore, other: SessionStore) -> None:
    first, second = await sessions.hosts()
    assert (first.name, first.address, first.slots, first.incarnation) == (HOST, "http://lab-7:8000", 2, "first")
    assert (second.name, second.state, second.is_draining) == (OTHER, HostState.LIVE, False)
    assert first.admits
    assert second.admits
    assert await other.hosts() == [first, second]


async def test_a_beat_is_seen_by_others_and_each_registration_begins_an_epoch(
    sessions: SessionStore, other: SessionStore
) -> None:
    before = await find_host(other, HOST)
    assert await sessions.beat()
    after = await find_host(other, HOST)
    assert (after.beat, after.epoch) == (before.beat + 1, before.epoch)
    await sessions.register_host(Registration("boot-3"))
    assert (await find_host(other, HOST)).epoch == before.epoch + 1


async def test_a_host_whose_beat_has_changed_is_not_declared_silent(
    sessions: SessionStore, other: SessionStore
) -> None:
    seen = await find_host(other, HOST)
    await sessions.beat()
    assert not await other.declare(seen, HostState.SILENT, NOON)
    assert (await find_host(other, HOST)).state is HostState.LIVE


async def test_sessions_of_a_silent_host_wait_again_at_their_position_unless_they_have_a_lab(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    for name in ("ann", "bob", "cem", "dan", "eve"):
        await sessions.join(joining(name), promote=True)
    assert await hosts_by_session(sessions) == {"ann": HOST, "bob": OTHER, "cem": HOST, "dan": OTHER, "eve": None}
    await stores.labs(HOST, 1).starting(lab("a", "ann"), NOON)
    assert await other.declare(await find_host(other, HOST), HostState.SILENT, NOON)
    assert await hosts_by_session(other) == {"ann": HOST, "bob": OTHER, "dan": OTHER, "cem": None, "eve": None}
    ending = await other.end(["bob"], EndCode.CLIENT, "done", NOON)
    assert [(session.session_id, session.host) for session in ending.promoted] == [("cem", OTHER)]
    assert (await other.end(["dan"], EndCode.CLIENT, "done", NOON)).promoted[0].session_id == "eve"


async def test_nothing_becomes_active_on_a_silent_host(sessions: SessionStore, other: SessionStore) -> None:
    await other.declare(await find_host(other, HOST), HostState.SILENT, NOON)
    for name in ("ann", "bob", "cem"):
        await other.join(joining(name), promote=True)
    assert await hosts_by_session(other) == {"ann": OTHER, "bob": OTHER, "cem": None}


async def test_sessions_and_labs_of_a_host_that_is_gone_end(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    for name in ("ann", "bob", "cem"):
        await sessions.join(joining(name), promote=True)
    labs = stores.labs(HOST, 1)
    await labs.starting(lab("a", "ann"), NOON)
    await labs.add_reference("a", "ann", None, NOON)
    assert await other.declare(await find_host(other, HOST), HostState.SILENT, NOON)
    assert await other.declare(await find_host(other, HOST), HostState.GONE, NOON)
    assert await hosts_by_session(other) == {"bob": OTHER, "cem": None}
    ended = await other.ended("ann")
    assert ended
    assert ended.code is EndCode.HOST_GONE
    assert await labs.live_lab() is None
    last = await labs.last_ended("ann")
    assert last
    assert last.code is OutcomeCode.LOST
    assert await labs.held_references("a") == 0


async def test_a_host_that_was_declared_silent_can_write_nothing_until_it_registers_anew(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    labs = stores.labs(HOST, 1)
    await labs.starting(lab("a", "ann"), NOON)
    await other.declare(await find_host(other, HOST), HostState.SILENT, NOON)
    assert not await sessions.beat()
    for write in (
        labs.running("a", [], NOON),
        labs.stopping("a"),
        labs.ended("a", OutcomeCode.RELEASED, "released", NOON),
        labs.add_reference("a", "ann", None, NOON),
        labs.release_reference("a", None, NOON),
        stores.labs(HOST, 2).starting(replace(lab("b"), work_dir="/labs/b"), NOON),
        sessions.set_quarantine("leftovers", NOON),
        sessions.hold_grants(on=True),
    ):
        with pytest.raises(Fenced):
            await write
    live = await labs.live_lab()
    assert live
    assert live.state == "starting"
    await sessions.register_host(Registration("boot-1", 2))
    await labs.running("a", [], NOON)
    assert (await find_host(other, HOST)).state is HostState.LIVE


async def test_a_lab_that_others_have_ended_stays_ended_when_its_host_comes_back(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    await sessions.join(joining("ann"), promote=True)
    labs = stores.labs(HOST, 1)
    await labs.starting(lab("a", "ann"), NOON)
    for state in (HostState.SILENT, HostState.GONE):
        await other.declare(await find_host(other, HOST), state, NOON)
    await sessions.register_host(Registration("boot-1", 2))
    for write in (labs.running("a", [], NOON), labs.add_reference("a", "ann", None, NOON)):
        with pytest.raises(Fenced, match="ended"):
            await write
    await labs.release_reference("a", None, NOON)
    assert await labs.live_lab() is None
    ended = await labs.last_ended("ann")
    assert ended
    assert ended.code is OutcomeCode.LOST


async def test_no_lab_starts_for_a_session_that_waits_again_or_is_active_elsewhere(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    await sessions.join(joining("ann"), promote=True)
    await other.declare(await find_host(other, HOST), HostState.SILENT, NOON)
    await sessions.register_host(Registration("boot-1", 2))
    labs = stores.labs(HOST, 1)
    with pytest.raises(Fenced, match="waits"):
        await labs.starting(lab("a", "ann"), NOON)
    await sessions.hold_grants(on=True)
    await sessions.promote(NOON)
    assert await hosts_by_session(sessions) == {"ann": OTHER}
    with pytest.raises(Fenced, match=OTHER):
        await labs.starting(lab("a", "ann"), NOON)
    assert await labs.live_lab() is None


async def test_a_lab_may_start_in_advance_while_its_session_waits(
    stores: OpenStores, sessions: SessionStore, other: SessionStore
) -> None:
    await sessions.join(joining("ann"), promote=False)
    await stores.labs(HOST, 1).starting(lab("a", "ann"), NOON, in_advance=True)
    assert await stores.labs(HOST, 1).live_lab() == lab("a", "ann")


async def test_a_second_process_with_the_name_of_a_host_fences_the_first(
    open_stores: Opener, sessions: SessionStore, other: SessionStore
) -> None:
    async with open_stores() as twin:
        await twin.sessions(HOST).register_host(Registration("boot-1", 2, None, "twin"))
        assert not await sessions.beat()
        assert (await find_host(sessions, HOST)).incarnation == "twin"
        assert await twin.sessions(HOST).beat()


async def test_no_server_lets_a_session_become_active_on_a_host_that_holds_its_grants(
    sessions: SessionStore, other: SessionStore
) -> None:
    await sessions.hold_grants(on=True)
    held = await find_host(other, HOST)
    assert (held.serves, held.admits) == (True, False)
    for name in ("ann", "bob", "cem", "dan"):
        await other.join(joining(name), promote=True)
    assert await hosts_by_session(other) == {"ann": OTHER, "bob": OTHER, "cem": None, "dan": None}
    ending = await other.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert [(session.session_id, session.host) for session in ending.promoted] == [("cem", OTHER)]
    assert await sessions.promote(NOON) == ()
    await sessions.hold_grants(on=False)
    promoted = await other.promote(NOON)
    assert [(session.session_id, session.host) for session in promoted] == [("dan", HOST)]


async def test_a_host_that_registers_does_not_hold_its_grants(sessions: SessionStore, other: SessionStore) -> None:
    await sessions.hold_grants(on=True)
    await sessions.register_host(Registration("boot-1", 2))
    assert (await find_host(other, HOST)).admits


async def test_last_seen_times_of_sessions_reach_other_servers(sessions: SessionStore, other: SessionStore) -> None:
    joined = await sessions.join(joining("ann"), promote=False)
    assert await other.live_sessions(["ann", "nobody"]) == [joined]
    await sessions.record_last_seen({"ann": NOON.replace(hour=13)})
    assert await other.last_seen() == {"ann": NOON.replace(hour=13)}
    await sessions.end(["ann"], EndCode.CLIENT, "done", NOON)
    assert await other.live_sessions(["ann"]) == []
    assert await other.last_seen() == {}
