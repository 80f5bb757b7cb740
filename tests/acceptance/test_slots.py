"""A host with several slots: several sessions are active at once, each with a lab of its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.shell import sql
from tests.commands import Shell
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    with running_server(tmp_path, slots="3") as started:
        yield started


def call(server: LabServer, session_id: str, method: str, path: str, **options: Any) -> httpx.Response:
    with server.client(session_id) as client:
        return client.request(method, path, **options)


def lab(server: LabServer, session_id: str) -> dict[str, Any]:
    return dict(call(server, session_id, "GET", "/lab").json())


def labs_of_containers(server: LabServer) -> set[str]:
    return {str(container["labels"]["containerlab"]) for container in server.fake.containers()}


def metrics(server: LabServer) -> str:
    return httpx.get(f"{server.url}/metrics").text


def end(server: LabServer, session_id: str) -> None:
    assert call(server, session_id, "DELETE", f"/session/{session_id}").status_code == 204


def test_as_many_sessions_as_slots_are_active_and_have_labs_of_the_same_topology(server: LabServer) -> None:
    sessions = [server.join() for _ in range(4)]
    assert [server.status(session)["position"] for session in sessions] == [0, 0, 0, 1]
    assert [server.status(session)["slot"] for session in sessions] == [1, 2, 3, None]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda session: server.acquire(session, topology_text(2)), sessions[:3]))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert len(labs_of_containers(server)) == 3
    assert len(server.fake.containers()) == 6
    assert server.fake.violations() == []
    numbers = sql(server.database, "SELECT lab_number FROM current_lab ORDER BY slot")
    assert len({number for (number,) in numbers if number}) == 3
    for session in sessions[:3]:
        assert lab(server, session)["state"] == "running"
    assert server.acquire(sessions[3], topology_text(2)).status_code == 423


def test_the_end_of_one_lab_leaves_the_others_alone(server: LabServer) -> None:
    first, second, third = sessions = [server.join() for _ in range(3)]
    for session in sessions:
        assert server.acquire(session, topology_text(2)).status_code == 200
    before = {container["name"] for container in server.fake.containers()}
    end(server, second)
    wait_until(lambda: len(server.fake.containers()) == 4, 20, "the lab is not torn down")
    wait_until(lambda: len(server.lab_directories()) == 2, 20, "the directory is not removed")
    assert {container["name"] for container in server.fake.containers()} < before
    assert lab(server, first)["state"] == lab(server, third)["state"] == "running"
    newcomer = server.join()
    assert server.status(newcomer)["slot"] == 2
    assert server.acquire(newcomer, topology_text(2)).status_code == 200
    for session in (first, third, newcomer):
        end(server, session)
    wait_until(server.is_clean, 20, "something is left")


def test_a_failed_start_leaves_the_other_labs_alone(server: LabServer) -> None:
    first, second = server.join(), server.join()
    assert server.acquire(first, topology_text(2)).status_code == 200
    assert server.acquire(second, topology_text(2, fail="start")).status_code == 500
    assert lab(server, first)["state"] == "running"
    assert len(server.fake.containers()) == 2
    assert server.acquire(second, topology_text(1)).status_code == 200


def test_all_labs_are_adopted_after_a_crash(server: LabServer) -> None:
    sessions = [server.join() for _ in range(3)]
    for session in sessions:
        assert server.acquire(session, topology_text(2)).status_code == 200
    before = {container["full_id"] for container in server.fake.containers()}
    starts = len(server.fake.invocations("up"))
    server.restart()
    for session in sessions:
        assert lab(server, session)["state"] == "running"
        assert lab(server, session)["ref_count"] == 1
    assert {container["full_id"] for container in server.fake.containers()} == before
    assert len(server.fake.invocations("up")) == starts
    end(server, sessions[0])
    wait_until(lambda: len(server.fake.containers()) == 4, 20, "the adopted lab is not torn down")
    assert lab(server, sessions[1])["state"] == "running"


def test_sessions_keep_their_labs_when_the_server_has_fewer_slots_after_a_restart(server: LabServer) -> None:
    first, second, third, waiter = (server.join() for _ in range(4))
    for session in (first, second, third):
        assert server.acquire(session, topology_text(1)).status_code == 200
    server.kill()
    server.settings["slots"] = "2"
    server.start()
    assert lab(server, third)["state"] == "running"
    end(server, third)
    wait_until(lambda: len(server.fake.containers()) == 2, 20, "the lab of the third slot is not torn down")
    assert server.status(waiter)["position"] == 1
    end(server, second)
    assert server.status(waiter, wait=20)["slot"] == 2


def test_a_session_reaches_only_its_own_lab(server: LabServer) -> None:
    first, second = server.join(), server.join()
    assert server.acquire(first, topology_text(1)).status_code == 200
    assert server.acquire(second, topology_text(2)).status_code == 200
    assert [device["name"] for device in call(server, first, "GET", "/lab/devices").json()] == ["r1"]
    assert [device["name"] for device in call(server, second, "GET", "/lab/devices").json()] == ["r1", "r2"]
    command = {"command": ["hostname"]}
    assert call(server, first, "POST", "/lab/devices/r2/exec", json=command).status_code == 404
    assert call(server, first, "POST", "/lab/release").status_code == 204
    assert lab(server, second)["state"] == "running"
    assert call(server, second, "GET", "/lab/log").status_code == 200


def test_the_queue_shows_hosts_and_slots(server: LabServer) -> None:
    sessions = [server.join(client=f"user-{number}") for number in range(4)]
    queue = httpx.get(f"{server.url}/queue").json()
    [host] = queue["hosts"]
    assert (host["name"], host["slots"], host["active"], host["state"]) == ("test-host", 3, 3, "live")
    assert [(entry["host"], entry["slot"]) for entry in queue["sessions"]] == [
        *(("test-host", slot) for slot in (1, 2, 3)),
        (None, None),
    ]
    printed = Shell(server.url, server.root / "user").run("queue").stdout
    assert "host       slot" in printed
    assert "test-host  3" in printed
    assert server.status(sessions[3])["waiting_for"].startswith("user-0 holds a lab without a lab yet since")
    assert server.status(sessions[3])["waiting_for"].endswith("; other active sessions: 2")


def test_active_session_is_the_callers_own_or_the_first(server: LabServer) -> None:
    first, second = server.join(), server.join()
    assert httpx.get(f"{server.url}/active-session").json()["session_id"] == first[:8]
    assert call(server, second, "GET", "/active-session").json()["session_id"] == second
    end(server, first)
    assert httpx.get(f"{server.url}/active-session").json()["session_id"] == second[:8]


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        pytest.param("clab.ports: ['8080:80']", "ports", id="published port"),
        pytest.param("clab.network-mode: host", "network-mode", id="host network"),
    ],
)
def test_a_topology_that_would_share_an_object_with_another_lab_is_refused(
    server: LabServer, addition: str, key: str
) -> None:
    session = server.join()
    answer = server.acquire(session, f"provider: clab\ndefaults.device: linux\nnodes:\n  r1:\n    {addition}\n")
    assert answer.status_code == 422, answer.text
    assert key in answer.json()["detail"]
    assert server.fake.containers() == []


# Admission


def limited(tmp_path: Path, **settings: str) -> Any:
    """A server that expects nodes to need much memory."""
    half = psutil.virtual_memory().available * 55 // 100
    return running_server(tmp_path, slots="3", **{"node_memory": str(half), "memory_reserve": "0", **settings})


def test_a_topology_that_can_never_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with limited(tmp_path, node_memory=str(psutil.virtual_memory().total)) as server:
        session, waiter = server.join(), server.join()
        answer = server.acquire(session, topology_text(2))
        assert answer.status_code == 422, answer.text
        assert "of 2 nodes needs about" in answer.json()["detail"]
        checked = call(server, waiter, "POST", "/topology/check", files={"topology": ("t.yml", topology_text(2))})
        assert checked.status_code in {409, 422}
        assert "of 2 nodes needs about" in lab(server, session)["error"]
        wait_until(lambda: not server.lab_directories(), 10, "a directory is left")
        assert server.fake.invocations("up") == []


def test_a_start_waits_for_memory_and_says_so(tmp_path: Path) -> None:
    with limited(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        first, second, third = (server.join() for _ in range(3))
        assert server.acquire(first, topology_text(1)).status_code == 200
        waiting = threads.submit(server.acquire, second, topology_text(1))
        wait_until(lambda: "of memory" in (lab(server, second)["waiting_for"] or ""), 20, "the wait is not shown")
        assert lab(server, second)["state"] == "starting"
        end(server, third)
        fourth = server.join()
        assert server.status(fourth)["position"] == 1
        assert "waits for memory" in server.status(fourth)["waiting_for"]
        assert 'starts_waiting{reason="memory"} 1.0' in metrics(server)
        end(server, first)
        assert waiting.result(30).status_code == 200
        assert server.status(fourth, wait=20)["position"] == 0
        assert lab(server, second)["waiting_for"] is None


def test_a_start_that_waits_for_memory_ends_with_its_session(tmp_path: Path) -> None:
    with limited(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        first, second = server.join(), server.join()
        assert server.acquire(first, topology_text(1)).status_code == 200
        waiting = threads.submit(server.acquire, second, topology_text(1))
        wait_until(lambda: lab(server, second)["waiting_for"], 20, "the start does not wait")
        end(server, second)
        assert waiting.result(20).status_code == 404
        wait_until(lambda: len(server.lab_directories()) == 1, 20, "a directory is left")
        assert len(server.fake.invocations("up")) == 1


def test_a_start_that_waits_for_memory_does_not_depend_on_the_hold_of_grants(tmp_path: Path) -> None:
    with limited(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        first, second = server.join(), server.join()
        assert server.acquire(first, topology_text(1)).status_code == 200
        with no_change_of_the_hold(server):
            waiting = threads.submit(server.acquire, second, topology_text(1))
            wait_until(lambda: "nothing holds now" in server.log.read_text(), 20, "the hold is not written")
            assert "of memory" in lab(server, second)["waiting_for"]
        wait_until(lambda: holds_grants(server), 20, "the hold is not written again")
        with no_change_of_the_hold(server):
            end(server, first)
            assert waiting.result(30).status_code == 200
            third = server.join()
            assert server.status(third)["position"] == 1
        assert server.status(third, wait=20)["position"] == 0


@contextmanager
def no_change_of_the_hold(server: LabServer) -> Iterator[None]:
    """Let the database refuse changes of `holds_grants`."""
    refusal = "SELECT RAISE(ABORT, 'nothing holds now')"
    sql(server.database, f"CREATE TRIGGER refuse BEFORE UPDATE OF holds_grants ON lab_host BEGIN {refusal}; END")
    yield
    sql(server.database, "DROP TRIGGER refuse")


def holds_grants(server: LabServer) -> bool:
    (host,) = httpx.get(f"{server.url}/queue").json()["hosts"]
    return bool(host["holds_grants"])


def test_the_number_of_labs_that_start_at_once_is_limited(tmp_path: Path) -> None:
    with running_server(tmp_path, slots="3", lab_starts="1") as server, ThreadPoolExecutor(3) as threads:
        server.fake.control(start_seconds=1)
        sessions = [server.join() for _ in range(3)]
        starts = [threads.submit(server.acquire, session, topology_text(1)) for session in sessions]
        wait_until(
            lambda: 'starts_waiting{reason="starts"} 2.0' in metrics(server),
            30,
            "the other starts do not wait",
        )
        assert [start.result(60).status_code for start in starts] == [200, 200, 200]


def test_a_start_needs_the_memory_that_an_earlier_lab_used(tmp_path: Path) -> None:
    with limited(tmp_path, memory_interval="0.1") as server:
        server.fake.control(container_memory="10MiB")
        first = server.join()
        assert server.acquire(first, topology_text(1)).status_code == 200
        wait_until(lambda: "lab_memory_bytes 1.048576e+07" in metrics(server), 20, "the memory is not measured")
        end(server, first)
        wait_until(server.is_clean, 20, "the lab is not torn down")
        sessions = [server.join() for _ in range(3)]
        for session in sessions:
            assert server.acquire(session, topology_text(1)).status_code == 200
