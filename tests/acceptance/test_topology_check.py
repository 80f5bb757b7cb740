"""Topologies are checked and prepared while their sessions wait."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.shell import sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server


def check(server: LabServer, session: str, topology: str, name: str = "lab.yml") -> httpx.Response:
    with server.client(session) as client:
        return client.post("/topology/check", files={"topology": (name, topology)})


def test_a_check_returns_the_numbers_of_nodes_and_links(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    answer = check(lab_server, waiting, topology_text(3))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"nodes": 3, "links": 2}
    assert lab_server.fake.containers() == []
    assert lab_server.fake.instances() == {}


def test_a_rejected_topology_gets_the_message_of_netlab_and_leaves_nothing(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    answer = check(lab_server, waiting, "provider: clab\nnodes: [a]\n")
    assert answer.status_code == 422
    assert "No device type specified for node a" in answer.json()["detail"]
    assert str(lab_server.root) not in answer.text
    assert lab_server.lab_directories() == []
    assert lab_server.status(waiting)["position"] == 1


def test_a_topology_that_was_checked_starts_from_its_prepared_directory(lab_server: LabServer) -> None:
    first, second = lab_server.join(), lab_server.join()
    text = topology_text(2)
    assert check(lab_server, second, text).status_code == 200
    with lab_server.client() as client:
        client.delete(f"/session/{first}")
    answer = lab_server.acquire(second, text)
    assert answer.status_code == 200, answer.text
    assert answer.json()["reused"] is False
    assert lab_server.fake.invocations("up") == [["up", "--snapshot"]]
    assert len(lab_server.fake.invocations("create")) == 1
    with lab_server.client(second) as client:
        assert client.post("/lab/release").status_code == 204
    wait_until(lab_server.is_clean, 10, "the prepared directory outlives its lab")


def test_the_same_topology_is_checked_once_for_a_session(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    assert check(lab_server, waiting, topology_text(2)).json() == check(lab_server, waiting, topology_text(2)).json()
    assert len(lab_server.fake.invocations("create")) == 1


def test_a_prepared_lab_is_removed_with_its_session(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    assert check(lab_server, waiting, topology_text(2)).status_code == 200
    assert len(lab_server.lab_directories()) == 1
    with lab_server.client() as client:
        client.delete(f"/session/{waiting}")
    wait_until(lambda: lab_server.lab_directories() == [], 10, "the prepared directory outlives its session")


def test_a_prepared_lab_is_removed_if_its_session_has_lost_its_slot(tmp_path: Path) -> None:
    with running_server(tmp_path, sql_poll="5") as server:
        holder, waiting = server.join(), server.join()
        assert check(server, waiting, topology_text(2)).status_code == 200
        httpx.delete(f"{server.url}/session/{holder}")
        assert server.status(waiting)["position"] == 0
        sql(server.database, "UPDATE session SET state = 'waiting' WHERE session_id = ?", waiting)
        assert server.acquire(waiting, topology_text(2)).status_code == 503
        wait_until(lambda: server.lab_directories() == [], 10, "the prepared directory is left")


def test_a_prepared_lab_does_not_survive_a_killed_server(lab_server: LabServer) -> None:
    lab_server.join()
    assert check(lab_server, lab_server.join(), topology_text(2)).status_code == 200
    lab_server.restart()
    wait_until(lambda: lab_server.lab_directories() == [], 10, "a directory of the killed server is left")


def test_a_pending_check_does_not_delay_a_session_that_becomes_active(lab_server: LabServer) -> None:
    lab_server.fake.control(create_seconds=3600)
    first, second, third = (lab_server.join() for _ in range(3))
    answers: dict[str, httpx.Response] = {}

    def ask(session: str, nodes: int) -> threading.Thread:
        text = topology_text(nodes)
        thread = threading.Thread(target=lambda: answers.update({session: check(lab_server, session, text)}))
        thread.start()
        return thread

    busy = ask(third, 2)
    wait_until(lambda: len(lab_server.fake.invocations("create")) == 1, 10, "no check runs")
    held_up = ask(second, 3)
    wait_until(lambda: len(lab_server.lab_directories()) == 2, 10, "the second check has not arrived")
    with lab_server.client() as client:
        client.delete(f"/session/{first}")
        held_up.join(10)
        assert answers[second].status_code == 409
        client.delete(f"/session/{third}")
    busy.join(10)
    assert answers[third].status_code == 404


def test_memory_and_time_of_a_check_are_limited(tmp_path: Any) -> None:
    with running_server(tmp_path, create_timeout="5") as server:
        server.fake.control(create_seconds=3600)
        session = server.join()
        answer = check(server, session, topology_text(1))
        assert answer.status_code == 500
        assert "took longer than 5 s, the limit that --create-timeout sets" in answer.json()["detail"]
        assert server.lab_directories() == []
        server.fake.control()
        assert check(server, session, topology_text(1)).status_code == 200


def test_only_live_sessions_may_check(lab_server: LabServer) -> None:
    assert check(lab_server, "nobody", topology_text(1)).status_code == 404
    with lab_server.client() as client:
        assert client.post("/topology/check", files={"topology": ("lab.yml", "x")}).status_code == 422
    assert lab_server.lab_directories() == []


def test_a_topology_without_links_is_checked_and_prepared_as_any_other(lab_server: LabServer) -> None:
    first, second = lab_server.join(), lab_server.join()
    text = "provider: clab\ndefaults.device: frr\nnodes: [r1, r2]\n"
    answer = check(lab_server, second, text)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"nodes": 2, "links": 0}
    with lab_server.client() as client:
        client.delete(f"/session/{first}")
    assert lab_server.acquire(second, text).status_code == 200
    assert lab_server.fake.invocations("up") == [["up", "--snapshot"]]


def test_arguments_of_the_operator_apply_to_prepared_and_other_starts(tmp_path: Path) -> None:
    text = "provider: clab\nnodes: [r1, r2]\nlinks: [r1-r2]\n"  # without a device
    with running_server(tmp_path, netlab_up_args="-d frr --no-config -s message=hello") as server:
        session = server.join()
        cold = server.acquire(session, text)
        assert cold.status_code == 200, cold.text
        with server.client(session) as client:
            assert client.delete("/lab").status_code == 202
        assert check(server, session, text).json() == {"nodes": 2, "links": 1}
        prepared = server.acquire(session, text)
        assert prepared.status_code == 200, prepared.text
        starts = server.fake.invocations("up")
    assert starts[0][2:6] == ["-d", "frr", "-s", "message=hello"]
    assert "--no-config" in starts[0]
    assert starts[1:] == [["up", "--snapshot", "--no-config"]]
    devices = [
        [device["raw"]["ansible_network_os"] for device in answer.json()["devices"]] for answer in (cold, prepared)
    ]
    assert devices == [["frr", "frr"]] * 2


# Failures that are not the topology's


def test_a_check_that_failed_without_netlab_is_repeated(tmp_path: Path) -> None:
    netlab = tmp_path / "netlab"
    netlab.symlink_to(tmp_path / "fake" / "bin" / "netlab")
    with running_server(tmp_path, netlab=str(netlab)) as server:
        session = server.join()
        wait_until(lambda: server.fake.invocations("version"), 10)
        netlab.unlink()
        for answer in (check(server, session, topology_text(1)), server.acquire(session, topology_text(1))):
            assert answer.status_code == 500
            assert "netlab cannot be run" in answer.json()["detail"]
        netlab.symlink_to(server.fake.bin / "netlab")
        assert check(server, session, topology_text(1)).status_code == 200
        assert server.acquire(session, topology_text(1)).status_code == 200


@pytest.mark.parametrize("defaults", ["devices: [\n", "- a list\n", "provider: nonsense\n"])
def test_an_error_in_the_defaults_of_the_host_is_not_blamed_on_the_topology(
    lab_server: LabServer, defaults: str
) -> None:
    good, bad = "defaults.device: frr\nnodes: [r1]\n", "provider: clab\nnodes: [a]\n"
    own = lab_server.fake.home / ".netlab.yml"
    session = lab_server.join()
    assert check(lab_server, session, bad).status_code == 422  # with valid defaults
    own.write_text(defaults)
    for answer in (check(lab_server, session, good), lab_server.acquire(session, good, reuse="false")):
        assert answer.status_code == 500, answer.text
        assert "the lab host's own netlab defaults are at fault" in answer.json()["detail"]
        assert str(lab_server.root) not in answer.text
    own.write_text("provider: clab\n")
    assert check(lab_server, session, good).status_code == 200
    assert lab_server.acquire(session, bad).status_code == 422
