"""Several servers with one queue compared with a model, under random actions of clients, operators and hosts.

A server may know less than the database at any time, so the model does not predict who becomes active when. It checks
that each step was allowed, and that no slot stays free beside a waiting session once a server has looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from neops_remote_lab.core.codes import HostState, OutcomeCode
from neops_remote_lab.store.protocol import Fenced
from neops_remote_lab.store.sql import urls
from tests.chaos.shell import Shell, open_shell
from tests.fleet import Host, Model, Server
from tests.models import limits, remove_rows
from tests.stores import NOON, lab

T = TypeVar("T")
NAMES = ("lab-1", "lab-2", "lab-3")
INDEX = st.integers(0, 9)
SLOTS = st.integers(1, 3)


class FleetMachine(RuleBasedStateMachine):
    """Does to the servers what can be done, and checks each step."""

    def __init__(self, url: str, shell: Shell, hosts: int) -> None:
        super().__init__()
        self.url, self.sql = url, shell
        self.most_hosts = hosts
        self.resources = ExitStack()

    @initialize(slots=st.lists(SLOTS, min_size=1, max_size=len(NAMES)), sessions=st.integers(0, 9))
    def begin(self, slots: list[int], sessions: int) -> None:
        remove_rows(self.sql)
        self.loop = asyncio.new_event_loop()
        self.resources.callback(self.loop.close)
        self.model, self.servers = Model(), dict[str, Server]()
        self.resources.callback(self.stop_all)
        self.lab_numbers = count(1)
        self.names = NAMES[: min(self.most_hosts, len(slots))]
        for name, number in zip(self.names, slots, strict=False):
            self.start(name, number)
        for _ in range(sessions):
            self.join(0, None)

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def start(self, name: str, slots: int) -> None:
        known = self.model.hosts.setdefault(name, Host(slots))
        known.slots = slots
        known.register()
        self.servers[name] = Server(self.url, name, slots)
        self.do(self.servers[name].start())
        self.observe()

    def stop(self, name: str) -> None:
        self.do(self.servers.pop(name).stores.database.close())

    def stop_all(self) -> None:
        for name in list(self.servers):
            self.stop(name)

    def server(self, index: int) -> Server:
        """One of the servers that run."""
        names = sorted(self.servers)
        return self.servers[names[index % len(names)]]

    def other_host(self, index: int, state: HostState) -> str | None:
        """A host that the server of this index may declare something else than this state."""
        judge = self.server(index).name
        names = [name for name in self.names if name != judge and self.model.hosts[name].state is state]
        return names[index % len(names)] if names else None

    def observe(self) -> None:
        """Check what the latest step did to the database, and take over who became active."""
        rows = self.sql("SELECT session_id, state, rank, number, host, slot FROM session WHERE state <> 'ended'")
        places = {name: (rank, number) for name, _, rank, number, *_ in rows}
        active = {name: (slot, host) for name, state, _, _, host, slot in rows if state == "active"}
        began = {name: seat for name, seat in active.items() if name in self.model.waiting}
        assert set(began.values()) <= set(self.model.free)
        assert set(began) == set(self.model.order[: len(began)])
        self.model.active |= began
        self.model.waiting -= began.keys()
        assert active == self.model.active
        assert len(set(active.values())) == len(active)
        assert places.keys() - active.keys() == self.model.waiting
        assert all(self.model.places[name] == place for name, place in places.items())

    def no_slot_is_wasted(self) -> None:
        assert not (self.model.free and self.model.waiting)

    # Clients

    @rule(at=INDEX, key=st.sampled_from([None, None, "a", "b"]))
    def join(self, at: int, key: str | None) -> None:
        server = self.server(at)
        session_id = self.do(server.queue.join(client=None, purpose=None, key=key)).session.session_id
        if key and self.model.keys.get(key) in self.model.live:
            assert session_id == self.model.keys[key]
        else:
            self.joined(session_id, key)
        self.observe()

    def joined(self, session_id: str, key: str | None = None) -> None:
        [[number]] = self.sql("SELECT number FROM session WHERE session_id = ?", session_id)
        assert session_id not in self.model.places
        self.model.places[session_id] = self.model.last_rank + 1, number
        self.model.last_rank += 1
        self.model.waiting.add(session_id)
        if key:
            self.model.keys[key] = session_id

    @precondition(lambda self: self.model.live)
    @rule(at=INDEX, index=INDEX)
    def end(self, at: int, index: int) -> None:
        server, session_id = self.server(at), self.model.live[index % len(self.model.live)]
        assert self.do(server.queue.end(session_id))
        assert not self.do(server.queue.end(session_id))
        self.model.leave([session_id])
        self.observe()
        self.no_slot_is_wasted()

    @precondition(lambda self: self.model.ended)
    @rule(at=INDEX, index=INDEX)
    def an_ended_session_stays_so(self, at: int, index: int) -> None:
        session_id = self.model.ended[index % len(self.model.ended)]
        assert not self.do(self.server(at).queue.end(session_id))
        assert not self.server(at).queue.is_live(session_id)
        self.observe()

    # Servers

    @rule(at=INDEX)
    def look(self, at: int) -> None:
        server = self.server(at)
        self.do(server.look())
        self.observe()
        self.no_slot_is_wasted()

    @rule(at=INDEX)
    def all_look(self, at: int) -> None:
        for index in range(len(self.servers)):
            self.look(at + index)

    @precondition(lambda self: len(self.model.live) > 1)
    @rule(at=INDEX, index=INDEX)
    def a_look_meets_calls(self, at: int, index: int) -> None:
        self.join(at + 1, None)
        server, live = self.server(at), self.model.live
        ends = live[index % len(live)], live[(index + 1) % len(live)]

        async def at_once() -> tuple[str, bool, bool]:
            _, joined, first, _, second = await asyncio.gather(
                self.reload(server),
                server.queue.join(client=None, purpose=None, key=None),
                server.queue.end(ends[0]),
                server.queue.reconcile(),
                server.queue.end(ends[1]),
            )
            return joined.session.session_id, first, second

        session_id, *over = self.do(at_once())
        assert over == [True, True]
        self.model.leave(ends)
        self.joined(session_id)
        self.observe()
        self.look(at)

    async def reload(self, server: Server) -> None:
        await server.queue.reconcile(await server.stores.database.changes())

    @rule(at=INDEX, on=st.booleans())
    def hold_grants(self, at: int, on: bool) -> None:
        server = self.server(at)
        host, holding = self.model.hosts[server.name], server.queue.hold_grants(on=on)
        if host.is_fenced and host.holds_grants != on:
            with pytest.raises(Fenced):
                self.do(holding)
        else:
            self.do(holding)
            host.holds_grants = on
        self.observe()

    @rule(at=INDEX, slots=SLOTS)
    def restart(self, at: int, slots: int) -> None:
        name = self.server(at).name
        self.stop(name)
        self.start(name, slots)

    @precondition(lambda self: len(self.servers) > 1)
    @rule(at=INDEX)
    def vanish(self, at: int) -> None:
        self.stop(self.server(at).name)

    @precondition(lambda self: len(self.servers) < len(self.names))
    @rule(slots=SLOTS)
    def come_back(self, slots: int) -> None:
        self.start(next(name for name in self.names if name not in self.servers), slots)

    @rule(at=INDEX)
    def give_a_sign_of_life(self, at: int) -> None:
        server = self.server(at)
        self.do(server.liveness.look())
        host = self.model.hosts[server.name]
        if host.is_fenced:
            host.register()
        self.observe()

    @precondition(lambda self: self.other_host(0, HostState.LIVE))
    @rule(at=INDEX)
    def silent(self, at: int) -> None:
        self.declare(at, HostState.LIVE, HostState.SILENT)

    @precondition(lambda self: self.other_host(0, HostState.SILENT))
    @rule(at=INDEX)
    def gone(self, at: int) -> None:
        self.declare(at, HostState.SILENT, HostState.GONE)

    def declare(self, at: int, known: HostState, state: HostState) -> None:
        judge, name = self.server(at), self.other_host(at, known)
        if name is None:
            return
        seen = next(host for host in self.do(judge.sessions.hosts()) if host.name == name)
        assert self.do(judge.sessions.declare(seen, state, NOON))
        assert not self.do(judge.sessions.declare(seen, state, NOON))
        self.model.declare(name, state)
        self.do(judge.queue.reconcile())
        self.observe()
        self.no_slot_is_wasted()

    # Labs

    @precondition(lambda self: self.model.active)
    @rule(index=INDEX)
    def a_lab_starts(self, index: int) -> None:
        session_id = self.model.seated[index % len(self.model.active)]
        slot, name = self.model.active[session_id]
        host = self.model.hosts[name]
        if name not in self.servers or slot in host.labs:
            return
        starting = (
            self.servers[name]
            .stores.labs(name, slot)
            .starting(lab(f"lab-{next(self.lab_numbers)}-{slot}", session_id), NOON)
        )
        if host.is_fenced:
            with pytest.raises(Fenced):
                self.do(starting)
        else:
            self.do(starting)
            host.labs[slot] = session_id

    @rule(at=INDEX)
    def labs_end(self, at: int) -> None:
        server = self.server(at)
        host = self.model.hosts[server.name]
        for slot in sorted(host.labs):
            store = server.stores.labs(server.name, slot)
            live = self.do(store.live_lab())
            assert live
            ending = store.ended(live.lab_id, OutcomeCode.RELEASED, "released", NOON)
            if host.is_fenced:
                with pytest.raises(Fenced):
                    self.do(ending)
            else:
                self.do(ending)
                del host.labs[slot]

    # Operators

    @precondition(lambda self: self.model.live)
    @rule(index=INDEX, how=st.sampled_from(["UPDATE session SET state = 'ended'", "DELETE FROM session"]))
    def operator_ends(self, index: int, how: str) -> None:
        session_id = self.model.live[index % len(self.model.live)]
        self.sql(f"{how} WHERE session_id = ?", session_id)
        self.model.leave([session_id])

    @precondition(lambda self: self.model.live)
    @rule(index=INDEX, rank=st.integers(-3, 12))
    def operator_moves(self, index: int, rank: int) -> None:
        session_id = self.model.live[index % len(self.model.live)]
        self.sql("UPDATE session SET rank = ? WHERE session_id = ?", rank, session_id)
        self.model.move(session_id, rank)

    @precondition(lambda self: len(self.model.waiting) > 1)
    @rule(index=INDEX)
    def operator_swaps(self, index: int) -> None:
        order = self.model.order
        pair = order[index % len(order)], order[(index + 1) % len(order)]
        ranks = [self.model.places[name][0] for name in pair]
        swap = "UPDATE session SET rank = CAST(? AS integer) - rank WHERE session_id IN (?, ?)"
        self.sql(swap, sum(ranks), *pair)
        for name, rank in zip(pair, reversed(ranks), strict=True):
            self.model.move(name, rank)

    @precondition(lambda self: self.model.active)
    @rule(index=INDEX)
    def operator_lets_wait_again(self, index: int) -> None:
        session_id = self.model.seated[index % len(self.model.active)]
        self.sql("UPDATE session SET state = 'waiting' WHERE session_id = ?", session_id)
        self.model.wait_again([session_id])

    @rule(index=INDEX, on=st.booleans())
    def operator_drains(self, index: int, on: bool) -> None:
        name = self.names[index % len(self.names)]
        self.sql("UPDATE lab_host SET is_draining = ? WHERE name = ?", on, name)
        self.model.hosts[name].is_draining = on

    @rule(index=INDEX, on=st.booleans())
    def operator_quarantines(self, index: int, on: bool) -> None:
        name, reason = self.names[index % len(self.names)], "repair" if on else None
        self.sql("UPDATE lab_host SET quarantine_reason = ? WHERE name = ?", reason, name)
        self.model.hosts[name].is_quarantined = on

    # What must hold

    @invariant()
    def hosts_are_as_the_model_says(self) -> None:
        rows = self.sql("SELECT name, state, is_draining, quarantine_reason FROM lab_host")
        assert {name: (state, bool(draining), reason is not None) for name, state, draining, reason in rows} == {
            name: (host.state, host.is_draining, host.is_quarantined) for name, host in self.model.hosts.items()
        }
        gone = {name for name, host in self.model.hosts.items() if host.state is HostState.GONE}
        assert not gone & {host for _, host in self.model.active.values()}

    def teardown(self) -> None:
        with self.resources:
            if hasattr(self, "servers"):
                self.all_look(0)


def test_several_servers_behave_as_one_queue(database: str) -> None:
    hosts = 1 if urls.sqlite_file(urls.parse(database)) else len(NAMES)
    with open_shell(database) as shell:
        machine = partial(FleetMachine, database, shell, hosts)
        run_state_machine_as_test(machine, settings=limits())  # type: ignore[arg-type]  # any callable will do
