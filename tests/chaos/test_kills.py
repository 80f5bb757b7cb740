"""The server is killed repeatedly while clients queue, wait, acquire, release and leave."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.chaos.clients import RETRY_TIMEOUT, working_clients
from tests.chaos.journal import FactKind, Journal
from tests.chaos.shell import fake, preloaded_netlabs, processes_of, sql
from tests.fakes import wait_until
from tests.server import LabServer, running_server

KILLS = int(os.environ.get("REMOTE_LAB_CHAOS_KILLS", "12"))
SEED = int(os.environ.get("REMOTE_LAB_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
CLIENTS = 5
SLOW = {
    "create_seconds": 0.02,
    "start_seconds": 0.05,
    "node_seconds": 0.03,
    "config_seconds": 0.05,
    "down_seconds": 0.1,
}
RECOVER_EVERY = 5
"""Number of kills until a server runs long enough for a session to finish."""
LONGEST_WAIT = 3.0
"""Seconds to wait for the condition of a kill. After that the server is killed anyway."""


def log_lines(server: LabServer) -> int:
    path = fake(server).state / "log"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_progress(journal: Journal, stop: threading.Event) -> None:
    """Wait until a session has left. On a slow machine, no session would finish between two kills."""
    left = len(journal.facts(FactKind.LEFT))
    deadline = time.monotonic() + RETRY_TIMEOUT
    while len(journal.facts(FactKind.LEFT)) == left and time.monotonic() < deadline and not stop.wait(0.01):
        pass


def wait_for_kill_moment(server: LabServer, choice: random.Random, stop: threading.Event) -> str:
    """Wait for a number of steps of netlab or of commits, or for a random time. Returns what was waited for."""
    kind = choice.choice(["netlab", "commits", "time"])
    count = choice.randint(1, 12)
    if kind == "time":
        stop.wait(choice.random())
        return kind
    deadline = time.monotonic() + LONGEST_WAIT
    with closing(sqlite3.connect(server.database)) as database:
        seen, version, begun = 0, None, log_lines(server)
        while seen < count and time.monotonic() < deadline and not stop.wait(0.001):
            if kind == "netlab":
                seen = log_lines(server) - begun
            elif (now := database.execute("PRAGMA data_version").fetchone()) != version:
                seen, version = seen + 1, now
    return f"{seen} of {kind}"


def check_database(server: LabServer, journal: Journal) -> None:
    """Check the invariants of the database, which hold at any moment of a kill."""
    # The order matters: clients continue, so facts that are read later can only explain more.
    joined, left = journal.sessions(FactKind.JOINED), journal.sessions(FactKind.LEFT)
    acquired, released = journal.keys(FactKind.ACQUIRED), journal.keys(FactKind.RELEASED)
    states = dict(sql(server.database, "SELECT session_id, state FROM session"))
    references = dict(
        sql(
            server.database,
            "SELECT idempotency_key, r.released_at IS NULL OR lab.outcome_code IS 'lost' "
            "FROM lab_reference r JOIN lab USING (lab_id)",
        )
    )
    leaving, releasing = journal.sessions(FactKind.LEAVING), journal.keys(FactKind.RELEASING)
    ended_sessions = {name for name, state in states.items() if state == "ended"}
    kept = dict(sql(server.database, "SELECT idempotency_key, session_id FROM lab_reference"))

    assert {name for name in joined if name not in states} == set(), "a join was lost"
    assert joined & ended_sessions <= leaving, "a session was ended that nobody ended"
    assert left <= ended_sessions, "an end was lost"
    assert acquired <= references.keys(), "an acquire was lost"
    assert all(not references[key] or key in acquired for key in released), "a release was lost"
    for key in acquired - releasing:
        assert references[key] or kept[key] in leaving, "a reference was released that nobody released"
    assert list(states.values()).count("active") <= 1
    live = "SELECT count(*) FROM lab WHERE state <> 'ended'"
    assert sql(server.database, live)[0][0] <= 1
    order = sql(
        server.database, "SELECT number FROM session WHERE activated_at IS NOT NULL ORDER BY activated_at, number"
    )
    assert order == sorted(order), "somebody was made active out of turn"
    assert sql(server.database, "PRAGMA integrity_check") == [("ok",)]


def check_host(server: LabServer) -> None:
    """Check that at most one lab is running, and that no two labs ran at the same time."""
    assert fake(server).violations() == []
    directories = {container["labels"]["clab-topo-file"] for container in fake(server).containers()}
    assert len(directories) <= 1


def check_answers(journal: Journal) -> None:
    """Check that no response was wrong, and that never two clients were active at the same time."""
    assert [fact.key for fact in journal.facts(FactKind.UNEXPECTED)] == []
    assert journal.facts(FactKind.ENDED) == [], "a session was ended that nobody ended"
    holders: set[str] = set()
    for fact in journal.facts(FactKind.ACTIVE, FactKind.LEAVING):
        if fact.what is FactKind.ACTIVE:
            holders.add(fact.session_id)
            assert holders == {fact.session_id}, f"active at once: {holders}"
        else:
            holders.discard(fact.session_id)


def restart(server: LabServer, choice: random.Random, stop: threading.Event) -> None:
    """Start the server. Sometimes it is killed before it serves."""
    while choice.random() < 0.15:
        server.launch()
        stop.wait(choice.random())
        server.kill()
    server.start()


def assert_nothing_is_left(server: LabServer) -> None:
    wait_until(lambda: httpx.get(f"{server.url}/queue").json()["length"] == 0, 30)
    wait_until(server.is_clean, 30, "something is left")
    wait_until(lambda: len(preloaded_netlabs(server)) == 1, 30, "no netlab is loaded for the next lab")
    wait_until(lambda: processes_of(server) == preloaded_netlabs(server), 30, "a process is left")
    open_labs = "SELECT count(*) FROM lab WHERE state <> 'ended'"
    wait_until(lambda: sql(server.database, open_labs) == [(0,)], 30, "the end of a lab is not written down")
    assert sql(server.database, "SELECT count(*) FROM lab_reference WHERE released_at IS NULL") == [(0,)]
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.chaos
@pytest.mark.timeout(120 + 15 * KILLS)
def test_no_kill_violates_an_invariant(tmp_path: Path) -> None:
    sys.stdout.write(f"{KILLS} kills; again with REMOTE_LAB_CHAOS_SEED={SEED}\n")
    choice = random.Random(SEED)  # noqa: S311 - nothing here is a secret
    journal, stop = Journal(), threading.Event()
    with running_server(tmp_path, kill_grace="0.5", down_timeout="30", log_level="WARNING") as server:
        fake(server).control(**SLOW)
        with working_clients([server.url], journal, SEED, CLIENTS, stop):
            for kill in range(KILLS):
                if kill % RECOVER_EVERY == RECOVER_EVERY - 1:
                    wait_for_progress(journal, stop)
                when = wait_for_kill_moment(server, choice, stop)
                server.kill()
                sys.stdout.write(f"kill {kill + 1} after {when}: {journal}\n")
                check_database(server, journal)
                check_answers(journal)
                check_host(server)
                restart(server, choice, stop)
                if stop.is_set():
                    break
        check_database(server, journal)
        check_answers(journal)
        assert_nothing_is_left(server)
        check_host(server)
        assert len(journal.facts(FactKind.LEFT)) >= CLIENTS
        assert server.stop() == 0
        assert server.is_clean()
        assert processes_of(server) == []
