"""Clients that die, become stale or hold the lab for too long."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.shell import ask, fake, in_background, is_active, lab, queue, sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

TOPOLOGY = topology_text(nodes=2)
ACTIVE_TIMEOUT = 2.0
GRACE = 10.0
"""Seconds after its timeout within which a client that has vanished must be released."""

USER = """\
import sys, threading
import httpx

url, topology, beat = sys.argv[1], sys.argv[2], float(sys.argv[3])
with httpx.Client(base_url=url, timeout=60) as client:
    session_id = client.post("/session", json={"client": "vanishing"}).json()["session_id"]
    client.headers["X-Session-ID"] = session_id
    while client.get(f"/session/{session_id}", params={"wait": 5}).json()["status"] != "active":
        pass
    print(session_id, flush=True)
    answer = client.post("/lab", files={"topology": ("topology.yml", topology)})
    print(answer.status_code, flush=True)
    while True:
        threading.Event().wait(beat)
        client.post("/session/heartbeat").raise_for_status()
"""
"""A program that joins, acquires a lab and waits, as a test run does."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    with running_server(tmp_path, active_timeout=str(ACTIVE_TIMEOUT), waiting_timeout="60") as server:
        yield server


@contextmanager
def user(server: LabServer, *, beat: float = 0.2) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a process that has acquired a lab. Returns it and its session."""
    command = [sys.executable, "-c", USER, server.url, TOPOLOGY, str(beat)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def until_active(server: LabServer, session_id: str) -> dict[str, Any]:
    """Wait as clients do: send a long poll again after each change of the position."""
    while (place := server.status(session_id, 30))["status"] == "waiting":
        pass
    return place


def test_the_lab_of_a_killed_client_is_free_soon(server: LabServer) -> None:
    with user(server) as (process, session_id):
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "200"
        waiting = server.join()
        # The client may hold the lab for longer than its timeout while its process runs.
        held_since = time.monotonic()
        wait_until(lambda: time.monotonic() - held_since > 1.5 * ACTIVE_TIMEOUT)
        assert is_active(server, session_id)
        with in_background(server.status, waiting, 30) as held:
            process.kill()
            assert held.result(ACTIVE_TIMEOUT + GRACE)["status"] == "active"
    answer = httpx.get(f"{server.url}/session/{session_id}")
    assert answer.status_code == 410
    assert "timeout" in answer.json()["detail"]
    assert server.acquire(waiting, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []
    assert len(fake(server).containers()) == 2


def test_the_starting_lab_of_a_killed_client_is_free_soon(server: LabServer) -> None:
    fake(server).control(hang="start")
    with user(server) as (process, session_id):
        waiting = server.join()
        wait_until(lambda: fake(server).containers())
        # The open acquire renews the session for as long as it lasts.
        open_since = time.monotonic()
        wait_until(lambda: time.monotonic() - open_since > 1.5 * ACTIVE_TIMEOUT)
        assert is_active(server, session_id)
        process.kill()
        fake(server).control()
        assert server.status(waiting, wait=ACTIVE_TIMEOUT + GRACE)["status"] == "active"
    assert server.acquire(waiting, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []


def test_a_killed_waiting_client_is_skipped(tmp_path: Path) -> None:
    with running_server(tmp_path, waiting_timeout="1", active_timeout="60") as server:
        holder = server.join()
        gone = server.join()
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.get(f"/session/{gone}", params={"wait": 60}, timeout=0.1)
        waiting = server.join()
        with in_background(until_active, server, waiting) as held:
            wait_until(lambda: queue(server)["length"] == 2, 1 + GRACE)
            assert [entry["session_id"] for entry in queue(server)["sessions"]] == [holder[:8], waiting[:8]]
            assert httpx.get(f"{server.url}/session/{gone}").status_code == 410
            assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
            assert held.result()["status"] == "active"


def test_the_maximum_hold_ends_a_session(tmp_path: Path) -> None:
    with running_server(tmp_path, max_hold="2") as server, user(server) as (process, session_id):
        waiting = server.join()
        assert (
            server.status(waiting, wait=2 + GRACE)["status"] == "active"
        )  # although heartbeats of the active session continue
        ((held_seconds,),) = sql(
            server.database, "SELECT held_seconds FROM session_history WHERE session = ?", session_id[:8]
        )
        assert held_seconds >= 2
        answer = httpx.get(f"{server.url}/session/{session_id}")
        assert answer.status_code == 410
        assert "maximum hold" in answer.json()["detail"]
        assert "2 s" in answer.json()["detail"]
        assert process.wait(10) == 1  # its next heartbeat has reported the end
        wait_until(lambda: lab(server, waiting)["state"] == "none" and not fake(server).containers())
        assert server.acquire(waiting, TOPOLOGY).status_code == 200
        assert fake(server).violations() == []
