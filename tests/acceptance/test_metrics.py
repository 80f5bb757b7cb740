"""The metrics for Prometheus."""

import re
import sqlite3
from contextlib import closing

import httpx

from neops_remote_lab.core.metrics import FAMILIES, PREFIX
from tests.fakes import topology_text, wait_until
from tests.server import LabServer


def scrape(server: LabServer) -> dict[str, float]:
    """The values of metrics, by name with labels."""
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("neops_remote_lab_"): float(value) for name, _, value in lines}


def test_every_exported_metric_is_documented(lab_server: LabServer) -> None:
    types = re.findall(rf"^# TYPE {PREFIX}(\w+) (\w+)$", httpx.get(f"{lab_server.url}/metrics").text, re.MULTILINE)
    exposed = {(name, kind) for name, kind in types if not name.endswith("_created")}
    assert exposed == {(family.name, family.type) for family in FAMILIES}


def test_events_are_counted_and_states_are_gauges(lab_server: LabServer) -> None:
    holder, waiter = lab_server.join(), lab_server.join()
    assert lab_server.acquire(holder, topology_text(1)).status_code == 200
    assert lab_server.acquire(holder, topology_text(1)).status_code == 200
    now = scrape(lab_server)
    assert now["sessions_joined_total"] == 2
    assert now['sessions{state="waiting"}'] == 1
    assert now['sessions{state="active"}'] == 1
    assert now['lab_state{state="running"}'] == 1
    assert now["lab_references"] == 2
    assert now['lab_start_seconds_count{outcome="up"}'] == 1

    with lab_server.client() as client:
        client.delete(f"/session/{holder}")
    wait_until(lab_server.is_clean, 10, "the lab is not torn down")
    wait_until(
        lambda: scrape(lab_server)['lab_state{state="none"}'] == 1, 10, "the end of the lab is not in the metrics"
    )
    now = scrape(lab_server)
    assert now['sessions_ended_total{reason="client"}'] == 1
    assert now["hold_seconds_count"] == 1
    assert now["lab_teardown_seconds_count"] == 1
    assert now["queue_wait_seconds_count"] == 2

    broken = lab_server.acquire(waiter, "provider: clab\nnodes: [a]\n")
    assert broken.status_code == 422
    now = scrape(lab_server)
    assert now['lab_start_seconds_count{outcome="rejected"}'] == 1
    assert now["quarantined"] == 0


def test_every_wait_is_counted_once_regardless_of_its_end(lab_server: LabServer) -> None:
    def waits() -> float:
        return scrape(lab_server)["queue_wait_seconds_count"]

    holder, second, third = (lab_server.join() for _ in range(3))
    assert waits() == 1  # the first one was admitted at once
    with lab_server.client() as client:
        client.delete(f"/session/{holder}")
    assert lab_server.status(second, 10)["status"] == "active"
    assert waits() == 2
    with closing(sqlite3.connect(lab_server.database, isolation_level=None)) as database:
        database.execute("UPDATE session SET state = 'ended' WHERE session_id = ?", [second])
    assert lab_server.status(third, 10)["status"] == "active"
    assert waits() == 3
    fourth = lab_server.join()
    lab_server.restart()
    assert waits() == 0  # an earlier server has counted the active one
    with closing(sqlite3.connect(lab_server.database, isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE session SET state = 'ended' WHERE session_id = ?", [third])
        database.execute("UPDATE session SET state = 'active' WHERE session_id = ?", [fourth])
        database.execute("COMMIT")
    assert lab_server.status(fourth, 10)["status"] == "active"
    assert waits() == 1
