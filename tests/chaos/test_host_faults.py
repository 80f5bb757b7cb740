"""Servers of one queue are killed, suspended and cut off while clients queue, wait, acquire, release and leave."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.clients import working_clients
from tests.chaos.faults import NEED_NETWORK, FaultInjector, plan
from tests.chaos.history import History
from tests.chaos.hosts import running_hosts
from tests.chaos.journal import FactKind
from tests.chaos.ledger import violations
from tests.chaos.replay import Replay
from tests.device_network import NO_NETWORK
from tests.postgresql import problem

COUNT = int(os.environ.get("REMOTE_LAB_CHAOS_FAULTS", "15"))
SEED = int(os.environ.get("REMOTE_LAB_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
ENOUGH = 200
"""Number of faults of a run that has no excuse for not doing everything."""
CLIENTS = 20
STARTING_IN_ADVANCE = (2, 3)
"""The hosts that start labs in advance; the others do not."""


def exercised(history: History) -> dict[str, int]:
    """How often a run did what needs luck: the faults decide on it too."""
    replay, facts = Replay(history), Counter(fact.what for fact in history.facts)
    replay.run()
    return {
        "topologies checked": facts[FactKind.CHECKED],
        "labs in advance": len(replay.in_advance),
        "labs in advance used": len(replay.used_in_advance),
        "logs read": facts[FactKind.STREAMED],
        "consoles opened": facts[FactKind.CONSOLE_OPENED],
    }


@pytest.mark.chaos
@pytest.mark.skipif(bool(problem()), reason=problem())
@pytest.mark.timeout(240 + 10 * COUNT)
def test_no_fault_of_several_hosts_violates_an_invariant(tmp_path: Path) -> None:
    sys.stdout.write(f"{COUNT} faults; again with REMOTE_LAB_CHAOS_SEED={SEED}\n")
    if NO_NETWORK:
        sys.stdout.write(f"no connection is cut: {NO_NETWORK}\n")
    stop = threading.Event()
    with running_hosts(tmp_path, starting_in_advance=STARTING_IN_ADVANCE) as hosts:
        steps = plan(SEED, COUNT, len(hosts.servers), without=NEED_NETWORK if NO_NETWORK else ())
        with working_clients(hosts.urls, hosts.journal, SEED, CLIENTS, stop):
            FaultInjector(hosts, stop).carry_out(steps)
            hosts.wait_until_live()
        hosts.wait_until_settled()
        hosts.stop()
        history = hosts.history()
        found = violations(history)
        done = exercised(history)
        counts = ", ".join(f"{count} {what}" for what, count in done.items())
        sys.stdout.write(f"{hosts.journal}; {len(history.events)} events, {len(history.starts)} starts, {counts}\n")
        (tmp_path / "history").write_text(str(history), encoding="utf-8")
        assert not found, "\n".join(map(str, [*found[:20], f"{len(found)} in all; REMOTE_LAB_CHAOS_SEED={SEED}"]))
        assert len(hosts.journal.facts(FactKind.LEFT)) >= CLIENTS
        assert all(done.values()) or COUNT < ENOUGH, done
