"""The server's log: one line per event, as text and as JSON."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.core.log_format import shorten_ids
from tests.chaos.shell import sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR|DEBUG) [\w.]+: ")


def run_a_session(server: LabServer) -> list[str]:
    """Run two sessions and two labs, of which one fails. Returns the ids of the sessions."""
    holder = server.join(client="ann@office")
    waiter = server.join()
    assert server.acquire(holder, topology_text(1), "ospf.yml").status_code == 200
    assert server.acquire(holder, topology_text(1), "ospf.yml").status_code == 200
    with server.client(holder) as client:
        assert client.post("/lab/release").status_code == 204
        assert client.delete(f"/session/{holder}").status_code == 204
    wait_until(server.is_clean, 20)
    assert server.acquire(waiter, topology_text(1, fail="start")).status_code == 500
    httpx.delete(f"{server.url}/session/{waiter}")
    assert server.stop() == 0
    return [holder, waiter]


@pytest.mark.parametrize("debug", [False, True])
def test_each_event_is_one_line_with_a_shortened_session_id(tmp_path: Path, debug: bool) -> None:
    with running_server(tmp_path) as server:
        server.stop()
        server.log.unlink()
        if debug:
            server.environment["NEOPS_REMOTE_LAB_DEBUG"] = "true"
        server.start()
        holder, waiter = run_a_session(server)
    text = server.log.read_text()
    lines = text.splitlines()
    for expected in (
        rf"session {holder[:8]} joined: position 0, client ann@office",
        rf"session {holder[:8]} is active: waited \d+\.\d s, client ann@office",
        rf"session {waiter[:8]} joined: position 1, client without a label",
        rf"session {holder[:8]} acquires ospf.yml: lab \w+ starts",
        rf"lab \w+ of session {holder[:8]}: up after \d+\.\d s",
        rf"session {holder[:8]} shares lab \w+: 2 references",
        rf"session {holder[:8]} released lab \w+: 1 references are left",
        rf"session {holder[:8]} ended: ended by its client, active for \d+\.\d s",
        rf"lab \w+ of session {holder[:8]}: teardown begins: its session ended",
        rf"lab \w+ of session {holder[:8]} is gone: teardown took \d+\.\d s",
        rf"lab \w+ of session {waiter[:8]} did not start: ",
        rf"lab \w+ of session {waiter[:8]}: failed after",
    ):
        assert sum(bool(re.search(expected, line)) for line in lines) == 1, expected
    assert holder not in text
    assert waiter not in text
    assert [line for line in lines if not STAMP.match(line)] == []
    assert not re.search(r" (aiosqlite|sqlalchemy|asyncio|alembic)[\w.]*: ", text)
    first = lines[0]
    for part in ("neops-remote-lab ", f"127.0.0.1:{server.port}", str(server.database), str(server.work_dir)):
        assert part in first
    assert abs(datetime.fromisoformat(first.split()[0]) - datetime.now(UTC)) < timedelta(hours=1)


def test_a_label_cannot_forge_a_line(lab_server: LabServer) -> None:
    shown = lab_server.log.read_text()
    lab_server.join(client="bob")
    answer = httpx.post(f"{lab_server.url}/session", json={"client": "a\nINFO forged"})
    assert answer.status_code in {201, 422}
    assert not [
        line for line in lab_server.log.read_text()[len(shown) :].splitlines() if line.startswith("INFO forged")
    ]


def test_the_log_can_be_json(tmp_path: Path) -> None:
    with running_server(tmp_path, log_format="json") as server:
        session_id = server.join(client="ann")
        server.stop()
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert [line["level"] for line in lines if f"session {session_id[:8]} joined" in line["message"]] == ["INFO"]
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0) for line in lines)


def test_the_begin_and_the_end_of_a_quarantine_are_logged(lab_server: LabServer) -> None:
    sql(lab_server.database, "UPDATE lab_host SET quarantine_reason = 'a new image'")
    wait_until(lambda: "the host is quarantined: a new image" in lab_server.log.read_text(), 20)
    sql(lab_server.database, "UPDATE lab_host SET quarantine_reason = NULL")
    wait_until(lambda: "the quarantine is lifted" in lab_server.log.read_text(), 20)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /session/" + "a1" * 16 + "?wait=1", "GET /session/a1a1a1a1…?wait=1"),
        ("b2" * 32, "b2" * 32),
        ("lab " + "c3" * 8, "lab " + "c3" * 8),
    ],
)
def test_only_session_ids_are_shortened(text: str, shown: str) -> None:
    assert shorten_ids(text) == shown
