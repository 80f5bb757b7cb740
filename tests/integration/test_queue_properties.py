"""The queue compared with a model, under random actions of clients and an operator, timeouts and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.queue.settings import QueueSettings
from neops_remote_lab.store.opening import Stores
from neops_remote_lab.store.rows import Registration
from neops_remote_lab.store.settings import StoreSettings
from tests.chaos.shell import Shell, open_shell
from tests.models import HandClock, limits, remove_rows

T = TypeVar("T")
TIMEOUT = 100.0
HOST = "model-host"


class Model:
    """The expected queue: a list, whose head becomes active in a free slot of the host."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.active: dict[int, str] = {}
        self.waiting: list[str] = []
        self.seen: dict[str, float] = {}
        self.quarantined = False

    def promote(self, now: float) -> None:
        for slot in range(1, self.slots + 1):
            if slot not in self.active and self.waiting and not self.quarantined:
                self.active[slot] = self.waiting.pop(0)
                self.seen[self.active[slot]] = now

    def leave(self, session_id: str, now: float) -> None:
        self.waiting = [name for name in self.waiting if name != session_id]
        self.active = {slot: name for slot, name in self.active.items() if name != session_id}
        self.promote(now)

    @property
    def order(self) -> list[str]:
        return [self.active[slot] for slot in sorted(self.active)] + self.waiting


class QueueMachine(RuleBasedStateMachine):
    """Applies the same random actions to the queue and to the model, and compares them."""

    def __init__(self, url: str, shell: Shell) -> None:
        super().__init__()
        self.url, self.shell = url, shell

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        remove_rows(self.shell)
        self.loop = asyncio.new_event_loop()
        self.clock, self.model = HandClock(), Model(slots)
        self.ended: set[str] = set()
        self.open()

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def open(self) -> None:
        timeouts = {"waiting_timeout": TIMEOUT, "active_timeout": TIMEOUT}
        self.stores = Stores(StoreSettings(database=self.url, synchronous="NORMAL"))
        self.queue = SessionQueue(
            self.stores.sessions(HOST),
            QueueSettings.model_validate(timeouts),
            self.clock,
            host=HOST,
            slots=self.model.slots,
            is_shared=self.stores.database.is_shared,
        )
        self.do(self.stores.sessions(HOST).register_host(Registration("boot", self.model.slots)))
        self.do(self.stores.database.changes())
        self.do(self.queue.load())

    def sql(self, statement: str, *values: object) -> list[Any]:
        """Run a statement of an operator, and let the server read what has changed."""
        rows = self.shell(statement, *values)
        self.do(self.queue.reconcile(self.do(self.stores.database.changes())))
        return rows

    def pick(self, index: int) -> str:
        return self.model.order[index % len(self.model.order)]

    def leave(self, session_id: str) -> None:
        self.ended.add(session_id)
        self.model.leave(session_id, self.clock.seconds)

    # Clients

    @rule()
    def join(self) -> None:
        session_id = self.do(self.queue.join(client=None, purpose=None, key=None)).session.session_id
        self.model.waiting.append(session_id)
        self.model.seen[session_id] = self.clock.seconds
        self.model.promote(self.clock.seconds)

    @rule(key=st.sampled_from(["a", "b"]))
    def join_again_with_a_key(self, key: str) -> None:
        first = self.do(self.queue.join(client=None, purpose=None, key=key)).session.session_id
        if first not in self.model.order:
            self.model.waiting.append(first)
        self.model.seen[first] = self.clock.seconds
        self.model.promote(self.clock.seconds)
        assert self.do(self.queue.join(client=None, purpose=None, key=key)).session.session_id == first

    @precondition(lambda self: self.model.order)
    @rule(index=st.integers(0, 9))
    def end(self, index: int) -> None:
        session_id = self.pick(index)
        assert self.do(self.queue.end(session_id))
        assert not self.do(self.queue.end(session_id))
        self.leave(session_id)

    @precondition(lambda self: self.model.order)
    @rule(index=st.integers(0, 9))
    def renew(self, index: int) -> None:
        session_id = self.pick(index)
        assert self.queue.renew(session_id)
        self.model.seen[session_id] = self.clock.seconds

    @precondition(lambda self: self.ended)
    @rule()
    def ended_sessions_stay_ended(self) -> None:
        for session_id in self.ended:
            assert not self.queue.renew(session_id)
            assert not self.do(self.queue.end(session_id))
            assert self.do(self.queue.ended(session_id))

    # Time

    @rule(seconds=st.sampled_from([1, 40, 99, 101, 3600]))
    def time_passes(self, seconds: float) -> None:
        self.clock.seconds += seconds
        stale = {name for name in self.model.order if self.clock.seconds - self.model.seen[name] > TIMEOUT}
        assert set(self.do(self.queue.expire())) == stale
        # They end in one transaction, so that none of them becomes active before its own end.
        self.model.waiting = [name for name in self.model.waiting if name not in stale]
        self.model.active = {slot: name for slot, name in self.model.active.items() if name not in stale}
        self.ended |= stale
        self.model.promote(self.clock.seconds)

    @rule(hours=st.integers(-30, 30))
    def the_wall_clock_jumps(self, hours: int) -> None:
        self.clock.wrong = timedelta(hours=hours)

    @rule(slots=st.integers(1, 3))
    def restart(self, slots: int) -> None:
        self.do(self.stores.database.close())
        self.clock.seconds += 100_000
        self.model.slots = slots
        self.open()
        self.model.promote(self.clock.seconds)
        self.model.seen = dict.fromkeys(self.model.order, self.clock.seconds)

    # The operator

    @precondition(lambda self: self.model.order)
    @rule(index=st.integers(0, 9))
    def operator_ends(self, index: int) -> None:
        session_id = self.pick(index)
        self.sql("UPDATE session SET state = 'ended' WHERE session_id = ?", session_id)
        self.leave(session_id)

    @precondition(lambda self: self.model.active)
    @rule()
    def operator_removes_the_active_ones(self) -> None:
        self.sql("DELETE FROM session WHERE state = 'active'")
        self.model.active = {}
        self.model.promote(self.clock.seconds)

    @precondition(lambda self: self.model.waiting)
    @rule(index=st.integers(0, 9), to_front=st.booleans())
    def operator_moves(self, index: int, to_front: bool) -> None:
        session_id = self.model.waiting.pop(index % len(self.model.waiting))
        ends = "min(rank) - 1" if to_front else "max(rank) + 1"
        rank = f"(SELECT {ends} FROM session WHERE state = 'waiting')"  # noqa: S608
        self.sql(f"UPDATE session SET rank = {rank} WHERE session_id = ?", session_id)  # noqa: S608
        self.model.waiting.insert(0 if to_front else len(self.model.waiting), session_id)
        self.model.seen[session_id] = self.clock.seconds  # a changed session gets its full timeout again

    @rule(on=st.booleans())
    def quarantine(self, on: bool) -> None:
        self.sql("UPDATE lab_host SET quarantine_reason = ?", "maintenance" if on else None)
        self.model.quarantined = on
        self.model.promote(self.clock.seconds)

    # Invariants

    @invariant()
    def the_queue_equals_the_model(self) -> None:
        assert [session.session_id for session in self.queue] == self.model.order
        assert len(self.queue) == len(self.model.order)
        assert {session.slot: session.session_id for session in self.queue.active} == self.model.active
        positions = [0] * len(self.model.active) + list(range(1, len(self.model.waiting) + 1))
        for position, session_id in zip(positions, self.model.order, strict=True):
            place = self.queue.place(session_id)
            assert place is not None
            assert place.position == position

    @invariant()
    def the_database_equals_the_model(self) -> None:
        waiting = [name for (name,) in self.shell("SELECT session_id FROM waiting ORDER BY place")]
        active = [name for (name,) in self.shell("SELECT session_id FROM active")]
        assert active + waiting == self.model.order
        assert len(active) == len(self.model.active)

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            self.do(self.stores.database.close())
            self.loop.close()


def test_the_queue_behaves_as_its_model_does(database: str) -> None:
    with open_shell(database) as shell:
        machine = partial(QueueMachine, database, shell)
        run_state_machine_as_test(machine, settings=limits())  # type: ignore[arg-type]  # any callable will do
