"""`GET /lab/artifacts`: an archive that helps to explain the failure of a test."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.artifacts import unpack
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

HIDDEN = "a text that must not be shown"
SWITCHES = topology_text(3).replace("frr", "eos")
"""Devices that have their configuration from netlab's playbook."""


def ask(server: LabServer, session: str) -> httpx.Response:
    with server.client(session) as client:
        return client.get("/lab/artifacts")


def take(server: LabServer, session: str) -> dict[str, bytes]:
    return unpack(ask(server, session))


def notes(files: dict[str, bytes]) -> list[str]:
    found: list[str] = json.loads(files["manifest.json"])["notes"]
    return found


def with_lab(server: LabServer, text: str, **more: Any) -> str:
    session = server.join()
    with server.client(session) as client:
        answer = client.post(
            "/lab", files=[("topology", ("campus.yml", text)), *more.get("files", [])], data=more.get("data")
        )
    assert answer.status_code == 200, answer.text
    return session


def test_an_archive_contains_everything_that_explains_a_failure(lab_server: LabServer) -> None:
    extra = [("extra_files", ("templates/motd.j2", b"hello")), ("extra_files", ("start.sh", b"#!/bin/sh\n"))]
    text = topology_text(2)
    session = with_lab(lab_server, text, files=extra, data={"executable": "start.sh"})
    files = take(lab_server, session)
    files.pop("graph.svg", None)  # where this machine has Graphviz
    assert sorted(files) == [
        "configs/r1.cfg",
        "configs/r2.cfg",
        "devices.json",
        "graph.dot",
        "inventory.json",
        "logs/r1.log",
        "logs/r2.log",
        "manifest.json",
        "netlab.log",
        "topology/campus.yml",
        "topology/start.sh",
        "topology/templates/motd.j2",
    ]
    assert files["topology/campus.yml"].decode() == text
    assert "hostname r1\n" in files["configs/r1.cfg"].decode()
    assert "zebra state -> up" in files["logs/r2.log"].decode()
    assert "OK: Lab devices configured" in files["netlab.log"].decode()
    assert '"r1" -- "r2"' in files["graph.dot"].decode()
    with lab_server.client(session) as client:
        devices = client.get("/lab/devices").json()
    assert json.loads(files["devices.json"]) == devices
    assert json.loads(files["inventory.json"])["all"]["hosts"] == {each["name"]: each["raw"] for each in devices}
    manifest = json.loads(files["manifest.json"])
    assert (manifest["topology"], manifest["error"], manifest["notes"]) == ("campus.yml", None, [])
    assert lab_server.lab_directories() == [manifest["lab_id"]]


def test_an_archive_contains_no_secrets_and_no_paths_of_the_host(lab_server: LabServer) -> None:
    lab_server.close()
    lab_server.environment["A_UNSEEN_OF_THE_SERVER"] = HIDDEN
    lab_server.start()
    session = with_lab(lab_server, topology_text(2))
    lab_server.fake.control(docker_exec_fails=True, fail=["graph"])
    everything = b"\n".join(take(lab_server, session).values()).decode()
    for secret in (session, HIDDEN, str(lab_server.root), "Traceback"):
        assert secret not in everything


def test_configurations_without_a_show_command_are_collected_with_netlab(lab_server: LabServer) -> None:
    session = with_lab(lab_server, SWITCHES)
    files = take(lab_server, session)
    assert {name for name in files if name.startswith("configs/")} == {f"configs/r{n}.cfg" for n in (1, 2, 3)}
    assert "hostname r3" in files["configs/r3.cfg"].decode()
    [collect] = lab_server.fake.invocations("collect")
    assert collect[-2:] == ["--limit", "r1,r2,r3"]


def test_a_graph_is_rendered_if_graphviz_is_installed(lab_server: LabServer) -> None:
    dot = lab_server.fake.bin / "dot"
    dot.write_text('#!/bin/sh\necho "<svg/>" >"$5"\n')
    dot.chmod(0o755)
    files = take(lab_server, with_lab(lab_server, topology_text(2)))
    assert files["graph.svg"] == b"<svg/>\n"
    assert files["graph.dot"].startswith(b"graph {")


# Parts that cannot be collected


def test_a_failed_part_becomes_a_note_and_the_other_parts_are_complete(lab_server: LabServer) -> None:
    session = with_lab(lab_server, SWITCHES)
    lab_server.fake.control(fail=["collect", "graph"])
    files = take(lab_server, session)
    assert "configs/r1.cfg" in files
    assert "configs/r3.cfg" not in files
    assert "logs/r3.log" in files
    graph, collect = notes(files)
    assert graph.startswith("the graph: exit status 1: ")
    assert collect.startswith("netlab collect: exit status 1: ")


def test_without_an_answer_of_docker_only_the_logs_of_nodes_are_missing(lab_server: LabServer) -> None:
    session = with_lab(lab_server, topology_text(1))
    lab_server.fake.control(docker_unreachable=True)
    files = take(lab_server, session)
    assert "graph.dot" in files
    assert "Cannot connect to the Docker daemon" in notes(files)[0]


def test_a_part_that_hangs_is_ended_at_the_time_limit_and_the_other_parts_are_complete(tmp_path: Path) -> None:
    with running_server(tmp_path, artifact_timeout="1.5", kill_grace="0.1") as server:
        session = with_lab(server, SWITCHES)
        server.fake.control(hang="graph", stubborn=True, hang_child=True)
        began = time.monotonic()
        files = take(server, session)
        assert time.monotonic() - began < 10
        assert "logs/r1.log" in files
        graph, configurations = notes(files)
        assert graph.startswith("the graph: it took longer than")
        assert "--artifact-timeout" in configurations


def test_the_size_of_an_archive_and_of_its_logs_is_limited(tmp_path: Path) -> None:
    with running_server(tmp_path, max_artifact_bytes="60000", max_artifact_log_bytes="10000") as server:
        session = with_lab(server, topology_text(6))
        server.fake.control(log_bytes=1_000_000)
        files = take(server, session)
        assert 0 < len(files["logs/r1.log"]) < 11_000
        assert sum(map(len, files.values())) < 70_000
        assert any("the archive is full" in note for note in notes(files))


def test_links_and_pipes_created_by_the_code_of_a_topology_are_omitted(lab_server: LabServer, tmp_path: Path) -> None:
    session = with_lab(lab_server, topology_text(1))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(HIDDEN)
    (lab,) = lab_server.work_dir.glob("*/lab")
    (lab / "link").symlink_to(tmp_path / "outside" / "secret")
    (lab / "directory").symlink_to(tmp_path / "outside")
    os.mkfifo(lab / "pipe")
    files = take(lab_server, session)
    assert HIDDEN.encode() not in b"".join(files.values())
    assert sorted(note.partition(":")[0] for note in notes(files)) == ["topology/link", "topology/pipe"]


# Labs that do not run


def test_the_archive_of_a_lab_that_did_not_start_has_the_log_and_the_reason(lab_server: LabServer) -> None:
    lab_server.fake.control(fail="config")
    session = lab_server.join()
    answer = lab_server.acquire(session, topology_text(1))
    assert answer.status_code == 500
    files = take(lab_server, session)
    assert sorted(files) == ["manifest.json", "netlab.log"]
    assert b"netlab initial failed" in files["netlab.log"]
    assert json.loads(files["manifest.json"])["error"] == answer.json()["detail"]


def test_without_a_lab_there_are_no_artifacts(lab_server: LabServer) -> None:
    active, waiting = lab_server.join(), lab_server.join()
    assert ask(lab_server, active).status_code == 404
    assert ask(lab_server, waiting).status_code == 423
    assert ask(lab_server, "nobody").status_code == 404
    with lab_server.client() as client:
        assert client.get("/lab/artifacts").status_code == 422
    assert lab_server.acquire(active, topology_text(1)).status_code == 200
    with lab_server.client(active) as client:
        assert client.post("/lab/release").status_code == 204
        wait_until(lambda: client.get("/lab").json()["state"] == "none")
    assert ask(lab_server, active).status_code == 404


# Concurrent calls


def test_a_collection_blocks_neither_the_event_loop_nor_other_calls_of_the_session(tmp_path: Path) -> None:
    with running_server(tmp_path, active_timeout="1") as server, ThreadPoolExecutor(1) as pool:
        session = with_lab(server, topology_text(1))
        server.fake.control(graph_seconds=2.5)
        archive = pool.submit(take, server, session)
        with server.client() as client:
            while not archive.done():
                began = time.monotonic()
                assert client.get("/healthz").status_code == 204
                assert time.monotonic() - began < 0.5
                threading.Event().wait(0.05)
        assert "graph.dot" in archive.result()
        assert server.status(session)["status"] == "active"


def test_a_session_collects_one_archive_at_a_time(lab_server: LabServer) -> None:
    session = with_lab(lab_server, topology_text(1))
    lab_server.fake.control(hang="graph")
    with ThreadPoolExecutor(1) as pool, lab_server.client(session) as client:
        first = pool.submit(ask, lab_server, session)
        wait_until(lambda: lab_server.fake.invocations("graph"))
        second = client.get("/lab/artifacts")
        assert second.status_code == 429
        assert int(second.headers["Retry-After"]) > 0
        assert client.delete("/lab").status_code == 202
        assert first.result(10).status_code == 404


@pytest.mark.parametrize("end", ["release", "session"])
def test_the_end_of_the_lab_stops_the_collection_first(lab_server: LabServer, end: str) -> None:
    session = with_lab(lab_server, SWITCHES)
    lab_server.fake.control(hang="collect")
    with ThreadPoolExecutor(1) as pool, lab_server.client(session) as client:
        archive = pool.submit(ask, lab_server, session)
        wait_until(lambda: any(line["event"] == "hang" for line in lab_server.fake.log()))
        began = time.monotonic()
        ended = client.post("/lab/release") if end == "release" else client.delete(f"/session/{session}")
        assert ended.status_code == 204
        answer = archive.result(10)
        assert answer.status_code == 404
        assert "ended while its artifacts were taken" in answer.json()["detail"]
        assert time.monotonic() - began < 2
    wait_until(lab_server.is_clean, 20)
    with lab_server.client() as client:
        assert client.get("/queue").json()["quarantined"] is None


def test_a_client_that_disconnects_stops_its_collection(lab_server: LabServer) -> None:
    session = with_lab(lab_server, topology_text(1))
    lab_server.fake.control(hang="graph")
    with lab_server.client(session) as client, suppress(httpx.ReadTimeout):
        client.get("/lab/artifacts", timeout=1)
    lab_server.fake.control()
    with lab_server.client(session) as client:
        wait_until(lambda: client.get("/lab/artifacts").status_code == 200)
    (base,) = (path for path in lab_server.work_dir.glob("[!.]*") if (path / "lab").is_dir())
    assert not list(base.glob("artifacts-*"))


def test_a_server_that_shuts_down_does_not_wait_for_a_collection(lab_server: LabServer) -> None:
    session = with_lab(lab_server, topology_text(1))
    lab_server.fake.control(hang="graph")
    with ThreadPoolExecutor(1) as pool:
        archive = pool.submit(ask, lab_server, session)
        wait_until(lambda: any(line["event"] == "hang" for line in lab_server.fake.log()))
        lab_server.fake.control()
        began = time.monotonic()
        assert lab_server.stop() == 0
        assert time.monotonic() - began < 10
        answer = archive.result(10)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
