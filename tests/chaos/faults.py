"""Faults of several hosts: a plan that a seed determines, and the injector that carries it out."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from tests.chaos.hosts import GONE_AFTER, LEASE, Hosts, end_session
from tests.chaos.journal import FactKind
from tests.chaos.network import Cable
from tests.chaos.shell import sql

DATABASE: Final = 0
"""The target of a fault that concerns no host."""
RECOVER_EVERY: Final = 5
"""Number of faults between two pauses, in which all faults are undone until some sessions have left."""
RECOVERY_VISITS: Final = 3
"""Number of sessions that leave in such a pause."""
RECOVERY_TIMEOUT: Final = 120.0
"""Seconds that such a pause may take."""
POLL_INTERVAL: Final = 0.05
"""Seconds between two checks for faults to undo and servers to start."""


class Fault(StrEnum):
    """The kind of a fault."""

    KILL = "kill"
    """SIGKILL for a server, which is started again later."""
    SUSPEND = "suspend"
    """SIGSTOP for a server, and SIGCONT later."""
    CUT_DATABASE = "cut off the database"
    """A host cannot reach the database."""
    CUT_ALL = "cut off"
    """A host cannot reach anything, and cannot be reached."""
    SHUTDOWN = "shutdown of PostgreSQL"
    CRASH = "crash of PostgreSQL"
    DRAIN = "drain"
    """An operator drains a host, and ends the draining later."""
    MOVE = "move"
    """An operator changes the rank of a waiting session."""
    END = "end"
    """An operator ends a session."""


NEED_NETWORK: Final = frozenset({Fault.CUT_DATABASE, Fault.CUT_ALL})
WEIGHTS: Final = {
    Fault.KILL: 5,
    Fault.SUSPEND: 4,
    Fault.CUT_DATABASE: 4,
    Fault.CUT_ALL: 3,
    Fault.SHUTDOWN: 1,
    Fault.CRASH: 1,
    Fault.DRAIN: 1,
    Fault.MOVE: 2,
    Fault.END: 2,
}
LENGTHS: Final = (LEASE / 3, LEASE + 0.5, GONE_AFTER + 1)
"""Seconds for which a fault lasts: within the lease, beyond it, or until the host is gone."""
TO_THE_FRONT: Final = """
    UPDATE session SET rank = (SELECT min(rank) - 1 FROM session WHERE state = 'waiting')
    WHERE session_id = ? AND state = 'waiting'
"""
TO_THE_END: Final = """
    UPDATE session SET rank = (SELECT max(rank) + 1 FROM session WHERE state = 'waiting')
    WHERE session_id = ? AND state = 'waiting'
"""
WITHOUT_HOST: Final = frozenset({Fault.SHUTDOWN, Fault.CRASH, Fault.MOVE, Fault.END})


@dataclass(frozen=True, slots=True)
class Step:
    """One fault."""

    fault: Fault
    target: int
    """The number of the host, or `DATABASE`."""
    delay: float
    """Seconds after the previous fault."""
    length: float
    """Seconds until it is undone."""
    choice: float
    """From 0 to 1; selects one of the live sessions."""

    def __str__(self) -> str:
        where = f" of lab-{self.target}" if self.target else ""
        return f"{self.fault}{where} for {self.length:.1f} s"


Undo: TypeAlias = Callable[[], None]


def plan(seed: int, count: int, hosts: int, without: Collection[Fault] = ()) -> list[Step]:
    """A list of `count` faults of `hosts` hosts, determined by the seed."""
    choose = random.Random(seed)  # noqa: S311 - nothing here is a secret
    faults = [fault for fault in WEIGHTS if fault not in without]
    steps = []
    for _ in range(count):
        [fault] = choose.choices(faults, [WEIGHTS[fault] for fault in faults])
        host, delay, choice = choose.randint(1, hosts), choose.uniform(0, 0.6), choose.random()
        length = choose.choice(LENGTHS) * choose.uniform(0.9, 1.3)
        if fault in WITHOUT_HOST:
            host, length = DATABASE, choose.uniform(0.1, 1.5)
        steps.append(Step(fault, host, delay, length, choice))
    return steps


class FaultInjector:
    """Carries out a plan. Several faults may last at once, but only one per target."""

    def __init__(self, hosts: Hosts, stop: threading.Event) -> None:
        """`stop` ends the plan early. It is set when a client has failed."""
        self._hosts = hosts
        self._stop = stop
        self._pending: dict[int, tuple[float, Undo]] = {}
        """When the fault of each target is undone, in monotonic seconds, and how."""
        self._begins: dict[Fault, Callable[[Step], Undo]] = {
            Fault.KILL: self._kill,
            Fault.SUSPEND: self._suspend,
            Fault.CUT_DATABASE: self._cut_database,
            Fault.CUT_ALL: self._cut_all,
            Fault.SHUTDOWN: self._shutdown,
            Fault.CRASH: self._crash,
            Fault.DRAIN: self._drain,
            Fault.MOVE: self._move,
            Fault.END: self._end,
        }

    def carry_out(self, steps: list[Step]) -> None:
        """Inject all faults in order, and undo them."""
        try:
            for number, step in enumerate(steps, 1):
                self._wait(step.delay)
                if number % RECOVER_EVERY == 0:
                    self._recover()
                if self._stop.is_set():
                    break
                sys.stdout.write(f"{number}: {step}; {self._hosts.journal}\n")
                self._begin(step)
        finally:
            self._undo_all()

    def _begin(self, step: Step) -> None:
        self._undo(step.target)
        if step.fault in {*WITHOUT_HOST, Fault.DRAIN}:
            self._undo(DATABASE)  # the change needs a running database
        undo = self._begins[step.fault](step)
        self._pending[step.target] = time.monotonic() + step.length, undo

    def _wait(self, seconds: float) -> None:
        """Wait. Meanwhile undo faults that are due, and start servers that have ended."""
        deadline = time.monotonic() + seconds
        while not self._stop.wait(POLL_INTERVAL):
            for target, (due, _) in list(self._pending.items()):
                if time.monotonic() >= due:
                    self._undo(target)
            self._hosts.supervise()
            if time.monotonic() >= deadline:
                break

    def _recover(self) -> None:
        self._undo_all()
        journal, deadline = self._hosts.journal, time.monotonic() + RECOVERY_TIMEOUT
        enough = len(journal.facts(FactKind.LEFT)) + RECOVERY_VISITS
        while len(journal.facts(FactKind.LEFT)) < enough and not self._stop.is_set():
            assert time.monotonic() < deadline, "no session gets a lab and leaves"
            self._wait(POLL_INTERVAL)

    def _undo(self, target: int) -> None:
        if target in self._pending:
            _, undo = self._pending.pop(target)
            undo()

    def _undo_all(self) -> None:
        for target in sorted(self._pending):  # the database first
            self._undo(target)
        self._hosts.supervise()

    # Faults

    def _kill(self, step: Step) -> Undo:
        self._hosts.kill(step.target)
        return lambda: self._hosts.down.discard(step.target)

    def _suspend(self, step: Step) -> Undo:
        server = self._hosts.servers[step.target]
        server.signal(signal.SIGSTOP)
        return lambda: server.signal(signal.SIGCONT)

    def _cut_database(self, step: Step) -> Undo:
        return self._cut(step.target, Cable.DATABASE)

    def _cut_all(self, step: Step) -> Undo:
        return self._cut(step.target, *Cable)

    def _cut(self, number: int, *cables: Cable) -> Undo:
        network, cut = self._hosts.network, self._hosts.cut
        assert network
        cut.add(number)
        for cable in cables:
            network.cut(number, cable)

        def heal() -> None:
            for cable in cables:
                network.heal(number, cable)
            cut.discard(number)

        return heal

    def _shutdown(self, _step: Step) -> Undo:
        self._hosts.cluster.stop(signal.SIGINT)
        return self._hosts.cluster.start

    def _crash(self, _step: Step) -> Undo:
        self._hosts.cluster.stop(signal.SIGQUIT)
        return self._hosts.cluster.start

    def _drain(self, step: Step) -> Undo:
        def drain(is_draining: str) -> None:
            self._undo(DATABASE)
            # With the lock of the queue, so that the number of the change says which sessions became active before it.
            sql(
                self._hosts.database,
                "WITH locked AS MATERIALIZED (SELECT FROM queue FOR NO KEY UPDATE) UPDATE lab_host "
                "SET is_draining = ?::boolean WHERE name = ? AND EXISTS (SELECT FROM locked)",
                *(is_draining, self._hosts.name(step.target)),
            )

        drain("true")
        return lambda: drain("false")

    def _move(self, step: Step) -> Undo:
        waiting = sql(self._hosts.database, "SELECT session_id FROM session WHERE state = 'waiting' ORDER BY rank")
        if waiting:
            [session_id] = waiting[int(step.choice * len(waiting))]
            sql(self._hosts.database, TO_THE_FRONT if step.choice < 0.7 else TO_THE_END, session_id)
        return _nothing

    def _end(self, step: Step) -> Undo:
        live = sql(self._hosts.database, "SELECT session_id FROM session WHERE state <> 'ended' ORDER BY number")
        if live:
            [session_id] = live[int(step.choice * len(live))]
            end_session(self._hosts, session_id)
        return _nothing


def _nothing() -> None:
    """For faults that need no undo."""
