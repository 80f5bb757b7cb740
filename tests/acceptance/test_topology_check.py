"""Topologies are checked, and prepared, while their sessions wait."""

import threading
from typing import Any

import httpx

from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server


def check(server: LabServer, session: str, topology: str, name: str = "lab.yml") -> httpx.Response:
    with server.client(session) as client:
        return client.post("/topology/check", files={"topology": (name, topology)})


def test_a_waiting_session_learns_what_its_topology_has(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    answer = check(lab_server, waiting, topology_text(3))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"nodes": 3, "links": 2}
    assert lab_server.fake.containers() == []
    assert lab_server.fake.instances() == {}


def test_a_broken_topology_is_refused_in_netlabs_own_words_and_nothing_is_kept(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    answer = check(lab_server, waiting, "provider: clab\nnodes: [a]\n")
    assert answer.status_code == 422
    assert "No device type specified for node a" in answer.json()["detail"]
    assert str(lab_server.root) not in answer.text
    assert lab_server.work_folders() == []
    assert lab_server.place(waiting)["position"] == 1


def test_a_topology_that_was_checked_starts_from_its_prepared_folder(lab_server: LabServer) -> None:
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
    wait_until(lab_server.is_clean, 10, "the prepared folder outlives its lab")


def test_the_same_topology_is_checked_once_for_a_session(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    assert check(lab_server, waiting, topology_text(2)).json() == check(lab_server, waiting, topology_text(2)).json()
    assert len(lab_server.fake.invocations("create")) == 1


def test_what_was_prepared_goes_with_its_session(lab_server: LabServer) -> None:
    lab_server.join()
    waiting = lab_server.join()
    assert check(lab_server, waiting, topology_text(2)).status_code == 200
    assert len(lab_server.work_folders()) == 1
    with lab_server.client() as client:
        client.delete(f"/session/{waiting}")
    wait_until(lambda: lab_server.work_folders() == [], 10, "the prepared folder outlives its session")


def test_what_was_prepared_does_not_outlive_a_killed_server(lab_server: LabServer) -> None:
    lab_server.join()
    assert check(lab_server, lab_server.join(), topology_text(2)).status_code == 200
    lab_server.restart()
    wait_until(lambda: lab_server.work_folders() == [], 10, "a folder of the killed server is left")


def test_a_check_that_has_not_begun_does_not_hold_up_a_session_whose_turn_has_come(lab_server: LabServer) -> None:
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
    wait_until(lambda: len(lab_server.work_folders()) == 2, 10, "the second check has not arrived")
    with lab_server.client() as client:
        client.delete(f"/session/{first}")
        held_up.join(10)
        assert answers[second].status_code == 409
        client.delete(f"/session/{third}")
    busy.join(10)
    assert answers[third].status_code == 404


def test_memory_and_time_of_a_check_are_bounded(tmp_path: Any) -> None:
    with running_server(tmp_path, create_timeout="0.5") as server:
        server.fake.control(create_seconds=3600)
        session = server.join()
        answer = check(server, session, topology_text(1))
        assert answer.status_code == 422
        assert "took longer than 0.5 s" in answer.json()["detail"]
        assert server.work_folders() == []


def test_only_live_sessions_may_check(lab_server: LabServer) -> None:
    assert check(lab_server, "nobody", topology_text(1)).status_code == 404
    with lab_server.client() as client:
        assert client.post("/topology/check", files={"topology": ("lab.yml", "x")}).status_code == 422
    assert lab_server.work_folders() == []
