"""The lab of the next session is started while the session waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.shell import sql
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer

NEXT = topology_text(2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    prestarting = {"NEOPS_REMOTE_LAB_PRESTART": "true"}
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"), environment=prestarting)
    server.start()
    yield server
    server.close()


@pytest.fixture
def holder(server: LabServer) -> str:
    session = server.join()
    assert server.acquire(session, topology_text(1)).status_code == 200
    return session


def call(server: LabServer, session_id: str, method: str, path: str, **options: Any) -> httpx.Response:
    with server.client(session_id) as client:
        return client.request(method, path, **options)


def check(server: LabServer, session_id: str, topology: str = NEXT) -> None:
    assert (
        call(server, session_id, "POST", "/topology/check", files={"topology": ("t.yml", topology)}).status_code == 200
    )


def end(server: LabServer, session_id: str) -> None:
    assert call(server, session_id, "DELETE", f"/session/{session_id}").status_code == 204


def waits_for_containers(server: LabServer, number: int) -> None:
    wait_until(lambda: len(server.fake.containers()) == number, 30, f"{len(server.fake.containers())} containers")


def starts(server: LabServer) -> int:
    return len(server.fake.invocations("up"))


def test_the_acquire_of_the_next_session_gets_the_lab_that_runs_already(server: LabServer, holder: str) -> None:
    waiter = server.join()
    check(server, waiter)
    waits_for_containers(server, 3)
    assert server.status(waiter)["position"] == 1
    assert call(server, waiter, "GET", "/lab").status_code == 423
    wait_until(lambda: httpx.get(f"{server.url}/queue").json()["sessions"][1]["topology"] == "t.yml", 10)
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    answer = server.acquire(waiter, NEXT)
    assert answer.status_code == 200, answer.text
    assert [device["name"] for device in answer.json()["devices"]] == ["r1", "r2"]
    assert starts(server) == 2
    assert call(server, waiter, "GET", "/lab").json()["ref_count"] == 1
    waits_for_containers(server, 2)
    assert call(server, waiter, "POST", "/lab/release").status_code == 204
    wait_until(server.is_clean, 20, "something is left")


def test_only_the_session_of_a_prestarted_lab_gets_it(server: LabServer, holder: str) -> None:
    waiter, other = server.join(), server.join()
    check(server, other)
    check(server, waiter)
    waits_for_containers(server, 3)
    assert starts(server) == 2
    assert call(server, other, "GET", "/lab").status_code == 423
    end(server, waiter)
    waits_for_containers(server, 1)
    waits_for_containers(server, 3)  # now the other session is next
    end(server, holder)
    assert server.status(other, wait=20)["position"] == 0
    assert server.acquire(other, NEXT).status_code == 200
    assert starts(server) == 3


def test_a_prestarted_lab_ends_with_its_session(server: LabServer, holder: str) -> None:
    waiter = server.join()
    check(server, waiter)
    waits_for_containers(server, 3)
    end(server, waiter)
    waits_for_containers(server, 1)
    wait_until(lambda: len(server.lab_directories()) == 1, 20, "its directory is left")
    assert call(server, holder, "GET", "/lab").json()["state"] == "running"


def test_a_prestart_is_stopped_when_its_session_ends(server: LabServer, holder: str) -> None:
    server.fake.control(start_seconds=60)
    waiter = server.join()
    check(server, waiter)
    wait_until(lambda: starts(server) == 2, 20, "the lab does not start in advance")
    end(server, waiter)
    wait_until(lambda: len(server.lab_directories()) == 1, 20, "its directory is left")
    assert call(server, holder, "GET", "/lab").json()["state"] == "running"


def test_an_acquire_waits_for_the_start_in_advance(server: LabServer, holder: str) -> None:
    server.fake.control(start_seconds=2)
    waiter = server.join()
    check(server, waiter)
    wait_until(lambda: starts(server) == 2, 20, "the lab does not start in advance")
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    assert server.acquire(waiter, NEXT).status_code == 200
    assert starts(server) == 2


def test_another_topology_replaces_a_prestarted_lab(server: LabServer, holder: str) -> None:
    waiter = server.join()
    check(server, waiter)
    waits_for_containers(server, 3)
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    answer = server.acquire(waiter, topology_text(4))
    assert len(answer.json()["devices"]) == 4
    waits_for_containers(server, 4)


def test_a_lab_that_does_not_start_in_advance_is_started_once_more_by_the_acquire(
    server: LabServer, holder: str
) -> None:
    server.fake.control(fail="start", fail_times=1)
    waiter = server.join()
    check(server, waiter)
    wait_until(lambda: starts(server) == 2 and len(server.lab_directories()) == 1, 20, "it did not fail")
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    assert server.acquire(waiter, NEXT).status_code == 200
    assert starts(server) == 3


def test_a_prestarted_lab_survives_a_restart_of_the_server(server: LabServer, holder: str) -> None:
    waiter = server.join()
    check(server, waiter)
    waits_for_containers(server, 3)
    running = "SELECT count(*) FROM lab WHERE state = 'running'"
    wait_until(lambda: sql(server.database, running) == [(2,)], 20, "the lab in advance is not recorded as running")
    before = {container["full_id"] for container in server.fake.containers()}
    server.restart()
    assert call(server, holder, "GET", "/lab").json()["state"] == "running"
    assert {container["full_id"] for container in server.fake.containers()} == before
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    assert server.acquire(waiter, NEXT).status_code == 200
    assert starts(server) == 2


def test_without_a_checked_topology_nothing_starts_in_advance(server: LabServer, holder: str) -> None:
    waiter, other = server.join(), server.join()
    check(server, other)  # this session is not next
    end(server, holder)
    assert server.status(waiter, wait=20)["position"] == 0
    waits_for_containers(server, 2)  # now the other session is next
    assert server.acquire(waiter, topology_text(1)).status_code == 200
    assert call(server, waiter, "GET", "/lab").json()["topology"] == "topology.yml"
