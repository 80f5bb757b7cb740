"""The server is killed repeatedly while clients queue, wait, acquire, release and leave."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from tests.chaos.shell import fake, loaded_ahead, sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

KILLS = int(os.environ.get("REMOTE_LAB_CHAOS_KILLS", "12"))
SEED = int(os.environ.get("REMOTE_LAB_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
CLIENTS = 5
TOPOLOGIES = [topology_text(nodes=2), topology_text(nodes=3)]
SLOW = {
    "create_seconds": 0.02,
    "start_seconds": 0.05,
    "node_seconds": 0.03,
    "config_seconds": 0.05,
    "down_seconds": 0.1,
}
BREATHE_EVERY = 5
"""So many kills until one server is left alone for long enough to be of use."""
LONGEST_WAIT = 3.0
"""Seconds for the moment of a kill to come; it is done anyway then."""
PATIENCE = 300.0
"""Seconds for which a client tries a call again: one that is held may die with many servers in a row."""


@dataclass
class Ledger:
    """What the clients were promised, and what they have given back. Each set only grows, in the order of the facts."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    joined: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    acquired: set[str] = field(default_factory=set)
    releasing: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    holders: set[str] = field(default_factory=set)
    rounds: int = 0

    def __str__(self) -> str:
        with self.lock:
            return f"{len(self.joined)} joined, {len(self.acquired)} acquired, {len(self.left)} left"

    def snapshot(self, *names: str) -> list[set[str]]:
        with self.lock:
            return [set(getattr(self, name)) for name in names]

    def note(self, name: str, value: str) -> None:
        with self.lock:
            getattr(self, name).add(value)

    @contextmanager
    def holding(self, session_id: str) -> Iterator[None]:
        """What only one client at a time may find itself in."""
        with self.lock:
            self.holders.add(session_id)
            assert self.holders == {session_id}, f"active at once: {self.holders}"
        try:
            yield
        finally:
            with self.lock:
                self.holders.discard(session_id)


class Client:
    """Joins, waits, uses the lab and leaves, over and over, and rides out every kill."""

    def __init__(self, url: str, ledger: Ledger, seed: int, stop: threading.Event) -> None:
        self.ledger, self.random, self.stop = ledger, random.Random(seed), stop  # noqa: S311
        self.http = httpx.Client(base_url=url, timeout=30)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        try:
            with self.http:
                while not self.stop.is_set():
                    self.visit()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's own thread
            self.error = error
            self.stop.set()

    def call(self, method: str, path: str, *, key: str = "", session_id: str = "", **request: object) -> httpx.Response:
        headers = {"X-Session-ID": session_id, "Idempotency-Key": key}
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                given = {name: value for name, value in headers.items() if value}
                answer = self.http.request(method, path, headers=given, **request)  # type: ignore[arg-type]
                if answer.status_code not in {423, 503}:
                    return answer
                problem = answer.text
            except httpx.TransportError as error:
                problem = repr(error)
            assert time.monotonic() < deadline, f"{method} {path}: {problem}"
            threading.Event().wait(0.05)

    def visit(self) -> None:
        ledger = self.ledger
        answer = self.call("POST", "/session", key=uuid.uuid4().hex, json={"client": "chaos"})
        assert answer.status_code == 201, answer.text
        session_id = str(answer.json()["session_id"])
        ledger.note("joined", session_id)
        if self.random.random() < 0.9 and self.wait(session_id):
            with ledger.holding(session_id):
                for last in [False, True][-self.random.randint(1, 2) :]:
                    # Another topology gets the host only once the one before was released.
                    self.use_lab(session_id, release=not last or self.random.random() < 0.7)
        ledger.note("leaving", session_id)
        answer = self.call("DELETE", f"/session/{session_id}")
        assert answer.status_code in {204, 404}, answer.text  # 404: the answer to an earlier attempt was lost
        ledger.note("left", session_id)
        ledger.rounds += 1

    def wait(self, session_id: str) -> bool:
        while not self.stop.is_set():
            answer = self.call("GET", f"/session/{session_id}", params={"wait": self.random.choice([0.1, 0.5, 1])})
            assert answer.status_code == 200, f"an acknowledged session is lost: {answer.text}"
            if answer.json()["status"] == "active":
                return True
        return False

    def use_lab(self, session_id: str, *, release: bool) -> None:
        number = self.random.randrange(len(TOPOLOGIES))
        key, names = self.acquire(session_id, number)
        assert names == [f"r{count}" for count in range(1, number + 3)]
        answer = self.call("GET", "/lab/devices", session_id=session_id)
        if answer.status_code == 200:
            assert [device["name"] for device in answer.json()] == names
        else:
            assert answer.status_code == 404, answer.text
            assert "lost" in answer.json()["detail"]
        if release:
            self.ledger.note("releasing", key)
            answer = self.call("POST", "/lab/release", session_id=session_id, key=key)
            assert answer.status_code in {204, 404}, answer.text
            if answer.status_code == 204:
                self.ledger.note("released", key)

    def acquire(self, session_id: str, number: int) -> tuple[str, list[str]]:
        while True:
            key = uuid.uuid4().hex
            files = {"topology": ("chaos.yml", TOPOLOGIES[number])}
            answer = self.call("POST", "/lab", session_id=session_id, key=key, files=files)
            if answer.status_code == 422 and "Idempotency-Key" in answer.text:
                continue  # it was granted, the answer died with the server, and so did the lab
            assert answer.status_code == 200, answer.text
            self.ledger.note("acquired", key)
            return key, [device["name"] for device in answer.json()["devices"]]


def log_lines(server: LabServer) -> int:
    path = fake(server).state / "log"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def some_progress(ledger: Ledger, stop: threading.Event) -> None:
    """Keep a server alive until a session has had a lab and left; a slow machine would otherwise never get that far."""
    left = len(ledger.left)
    deadline = time.monotonic() + PATIENCE
    while len(ledger.left) == left and time.monotonic() < deadline and not stop.wait(0.01):
        pass


def moment(server: LabServer, choice: random.Random, stop: threading.Event) -> str:
    """Wait for the moment of a kill: after so much was done by netlab, was committed, or at any time."""
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


def check_database(server: LabServer, ledger: Ledger) -> None:
    """The invariants at any moment, regardless of what the server was doing when it died."""
    # What was promised first, then what was given back: a set that is read later may only explain more.
    joined, left, acquired, released = ledger.snapshot("joined", "left", "acquired", "released")
    states = dict(sql(server.database, "SELECT session_id, state FROM session"))
    references = dict(
        sql(
            server.database,
            "SELECT idempotency_key, r.released_at IS NULL OR lab.outcome_code IS 'lost' "
            "FROM lab_reference r JOIN lab USING (lab_id)",
        )
    )
    leaving, releasing = ledger.snapshot("leaving", "releasing")
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
    """At most one lab is up, and never was another one started beside it."""
    assert fake(server).violations() == []
    directories = {container["labels"]["clab-topo-file"] for container in fake(server).containers()}
    assert len(directories) <= 1


def processes_of(server: LabServer) -> list[int]:
    """Programs started by the server, even if they have another parent now."""
    state = str(fake(server).state)
    server_pid = server.process.pid if server.process else None
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAKE_NETLAB_STATE") == state and process.pid != server_pid:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def start_again(server: LabServer, choice: random.Random, stop: threading.Event) -> None:
    """Start the server; now and then it is killed before it serves."""
    while choice.random() < 0.15:
        server.launch()
        stop.wait(choice.random())
        server.kill()
    server.start()


def assert_nothing_is_left(server: LabServer) -> None:
    wait_until(lambda: httpx.get(f"{server.url}/queue").json()["length"] == 0, 30)
    wait_until(server.is_clean, 30, "something is left")
    wait_until(lambda: len(loaded_ahead(server)) == 1, 30, "no netlab is loaded for the next lab")
    wait_until(lambda: processes_of(server) == loaded_ahead(server), 30, "a process is left")
    open_labs = "SELECT count(*) FROM lab WHERE state <> 'ended'"
    wait_until(lambda: sql(server.database, open_labs) == [(0,)], 30, "the end of a lab is not written down")
    assert sql(server.database, "SELECT count(*) FROM lab_reference WHERE released_at IS NULL") == [(0,)]
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.chaos
@pytest.mark.timeout(120 + 15 * KILLS)
def test_no_kill_violates_an_invariant(tmp_path: Path) -> None:
    sys.stdout.write(f"{KILLS} kills; again with REMOTE_LAB_CHAOS_SEED={SEED}\n")
    choice = random.Random(SEED)  # noqa: S311 - nothing here is a secret
    ledger, stop = Ledger(), threading.Event()
    with running_server(tmp_path, kill_grace="0.5", down_timeout="30", log_level="WARNING") as server:
        fake(server).control(**SLOW)
        clients = [Client(server.url, ledger, SEED + number, stop) for number in range(CLIENTS)]
        for client in clients:
            client.thread.start()
        try:
            for kill in range(KILLS):
                if kill % BREATHE_EVERY == BREATHE_EVERY - 1:
                    some_progress(ledger, stop)
                when = moment(server, choice, stop)
                server.kill()
                sys.stdout.write(f"kill {kill + 1} after {when}: {ledger}\n")
                check_database(server, ledger)
                check_host(server)
                start_again(server, choice, stop)
                if stop.is_set():
                    break
        finally:
            stop.set()
            for client in clients:
                client.thread.join()
        for client in clients:
            if client.error:
                raise client.error
        check_database(server, ledger)
        assert_nothing_is_left(server)
        check_host(server)
        assert ledger.rounds >= CLIENTS
        assert server.stop() == 0
        assert server.is_clean()
        assert processes_of(server) == []
