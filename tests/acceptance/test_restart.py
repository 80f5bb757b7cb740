"""Restarts of the server, after a signal and after kill -9."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.chaos.shell import (
    ask,
    container_ids,
    fake,
    in_background,
    is_active,
    is_running,
    lab,
    phase,
    sql,
    wait_for_event,
)
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, abandoned_directory, running_server
from tests.stores import NewDatabase

TOPOLOGY = topology_text(nodes=3)
HELD_CALLS = 250

KILLED_MIGRATION = """
import os, signal, sys
import alembic.op
from neops_remote_lab.store.sql.migrate import migrate

real, left = alembic.op.create_index, int(sys.argv[2])

def create_index(*arguments, **options):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*arguments, **options)

alembic.op.create_index = create_index
migrate(sys.argv[1])
"""
"""A program that migrates a database, and is killed after a number of indexes were created."""


def holder(server: LabServer, topology: str = TOPOLOGY) -> str:
    """A session that holds a lab."""
    session_id = server.join(client="holder")
    answer = server.acquire(session_id, topology)
    assert answer.status_code == 200, answer.text
    return session_id


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[LabServer]:
    """A server with each kind of database."""
    with running_server(tmp_path, database=database) as started:
        yield started


# Acknowledged means durable


def test_no_acknowledged_join_is_lost_whenever_the_server_is_killed(server: LabServer) -> None:
    acknowledged: list[str] = []

    def join_until_the_end() -> None:
        with httpx.Client(base_url=server.url) as client:
            try:
                while True:
                    answer = client.post("/session")
                    assert answer.status_code == 201, answer.text
                    acknowledged.append(answer.json()["session_id"])
            except httpx.TransportError:
                return

    for kill in range(1, 4):
        enough = len(acknowledged) + 7 * kill
        clients = [threading.Thread(target=join_until_the_end) for _ in range(4)]
        for client in clients:
            client.start()
        wait_until(lambda enough=enough: len(acknowledged) >= enough)  # type: ignore[misc]
        server.kill()
        for client in clients:
            client.join()
        server.start()
        positions = [server.status(session_id)["position"] for session_id in acknowledged]
        assert len(set(positions)) == len(positions)
        assert min(positions) == 0


def test_an_acknowledged_end_survives_kill_9(server: LabServer) -> None:
    sessions = [server.join() for _ in range(4)]
    for ending, following in itertools.pairwise(sessions):
        assert ask(server, ending, "DELETE", f"/session/{ending}").status_code == 204
        server.restart()
        assert httpx.get(f"{server.url}/session/{ending}").status_code == 404
        assert is_active(server, following)


def test_an_acknowledged_release_survives_kill_9(server: LabServer) -> None:
    fake(server).control(down_seconds=30)
    session_id = holder(server)
    assert server.acquire(session_id, TOPOLOGY).json()["reused"]

    assert ask(server, session_id, "POST", "/lab/release").status_code == 204
    server.restart()
    wait_until(lambda: lab(server, session_id)["running"])
    assert lab(server, session_id)["ref_count"] == 1

    assert ask(server, session_id, "POST", "/lab/release").status_code == 204
    server.kill()
    fake(server).control()
    server.start()
    wait_until(server.is_clean, 20)
    assert lab(server, session_id)["state"] == "none"
    assert len(fake(server).invocations("up")) == 1


@pytest.mark.parametrize("statements", [0, 3])
def test_a_first_start_that_was_killed_halfway_is_repeated(
    new_database: NewDatabase, tmp_path: Path, statements: int
) -> None:
    with new_database(tmp_path, with_tables=False) as database:
        command = [sys.executable, "-c", KILLED_MIGRATION, database, str(statements)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        with running_server(tmp_path, database=database) as server:
            assert server.join()


# Downtime does not count against sessions


def test_a_downtime_of_hours_ends_no_session(database: str, tmp_path: Path) -> None:
    limits = {"waiting_timeout": "3", "active_timeout": "3", "max_hold": "100", "last_seen_write": "0.1"}
    with running_server(tmp_path, database=database, **limits) as server:
        sessions = [server.join() for _ in range(3)]
        server.kill()
        for column in ("created_at", "activated_at", "last_seen_at"):
            sql(database, f"UPDATE session SET {column} = '2026-01-01 09:00:00' WHERE {column} IS NOT NULL")  # noqa: S608
        started = time.monotonic()
        server.start()
        assert [server.status(session_id)["position"] for session_id in sessions] == [0, 1, 2]
        # Only the time since the restart counts.
        wait_until(lambda: httpx.get(f"{server.url}/queue").json()["length"] == 0)
        assert time.monotonic() - started >= 3
        answer = httpx.get(f"{server.url}/session/{sessions[0]}")
        assert answer.status_code == 410
        assert "timeout" in answer.json()["detail"]


# Adoption


@pytest.fixture(params=["kill -9", "--on-exit keep"])
def end(request: pytest.FixtureRequest) -> Callable[[LabServer], None]:
    """Each way to end a server without a teardown."""

    def keep(server: LabServer) -> None:
        server.settings["on-exit"] = "keep"
        assert server.stop() == 0

    return LabServer.kill if request.param == "kill -9" else keep


def test_a_running_lab_is_adopted(database: str, tmp_path: Path, end: Callable[[LabServer], None]) -> None:
    with running_server(tmp_path, database=database, on_exit="keep") as server:
        session_id = holder(server)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        before, containers = lab(server, session_id), container_ids(fake(server))
        waiting = server.join()
        end(server)
        assert container_ids(fake(server)) == containers

        server.start()
        assert ask(server, session_id, "GET", "/lab/devices").json() == before["devices"]
        after = lab(server, session_id)
        assert (after["ref_count"], after["devices"], after["topology_sha256"]) == (
            2,
            before["devices"],
            before["topology_sha256"],
        )
        assert container_ids(fake(server)) == containers
        answer = server.acquire(session_id, TOPOLOGY)
        assert answer.json() == {"reused": True, "devices": before["devices"]}
        assert len(fake(server).invocations("up")) == 1
        assert server.status(waiting)["position"] == 1

        for _ in range(3):
            assert not server.is_clean()
            assert ask(server, session_id, "POST", "/lab/release").status_code == 204
        wait_until(server.is_clean)


def test_a_call_during_the_adoption_waits_for_its_end(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    devices = lab(lab_server, session_id)["devices"]
    fake(lab_server).control(status_seconds=1)
    lab_server.restart()
    assert ask(lab_server, session_id, "GET", "/lab/devices").json() == devices
    lab_server.restart()
    assert ask(lab_server, session_id, "POST", "/lab/release").status_code == 204
    wait_until(lab_server.is_clean)
    fake(lab_server).control()
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200
    assert len(fake(lab_server).invocations("down")) == 1
    fake(lab_server).control(status_seconds=1)
    lab_server.restart()
    assert ask(lab_server, session_id, "DELETE", "/lab").status_code == 202
    wait_until(lab_server.is_clean)


def test_an_acquire_that_is_repeated_after_a_restart_counts_once(server: LabServer) -> None:
    session_id = server.join()
    topology = {"topology": ("topology.yml", TOPOLOGY)}
    once = {"Idempotency-Key": "once"}
    first = ask(server, session_id, "POST", "/lab", files=topology, headers=once)
    assert first.status_code == 200
    fake(server).control(status_seconds=1)
    server.restart()
    again = ask(server, session_id, "POST", "/lab", files=topology, headers=once)
    assert again.json() == {"reused": True, "devices": first.json()["devices"]}
    assert lab(server, session_id)["ref_count"] == 1
    assert len(server.lab_directories()) == 1


def test_the_last_reference_is_released_once(server: LabServer) -> None:
    session_id = holder(server)
    fake(server).control(down_seconds=0.3)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: ask(server, session_id, "POST", "/lab/release").status_code, range(8))
    assert sorted(answers) == [204, *[404] * 7]
    wait_until(server.is_clean)
    assert len(fake(server).invocations("down")) == 1


def assert_lost(server: LabServer, session_id: str, *words: str) -> None:
    """Check that the lab is removed, that its session gets the reason, and that it can acquire a new one."""
    wait_until(server.is_clean, 20)
    wait_until(lambda: lab(server, session_id)["error"])
    for method, path in (("GET", "/lab/devices"), ("POST", "/lab/release")):
        answer = ask(server, session_id, method, path)
        assert answer.status_code == 404
        for word in (*words, "lost", "POST /lab"):
            assert word in answer.json()["detail"]
    assert "lost" in lab(server, session_id)["error"]
    assert sql(server.database_url, "SELECT count(*) FROM lab_history WHERE outcome_code = 'lost'") == [(1,)]
    answer = server.acquire(session_id, TOPOLOGY)
    assert answer.status_code == 200, answer.text
    assert not answer.json()["reused"]
    assert lab(server, session_id)["error"] is None
    assert fake(server).violations() == []


def test_an_incomplete_lab_is_torn_down(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    lab_server.kill()
    next((fake(lab_server).state / "containers").glob("*.json")).unlink()
    lab_server.start()
    assert_lost(lab_server, session_id, "did not run whole")


def test_a_lab_unknown_to_netlab_is_lost(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    lab_server.kill()
    for container in (fake(lab_server).state / "containers").glob("*.json"):
        container.unlink()
    (fake(lab_server).home / ".netlab" / "status.yaml").unlink()
    lab_server.start()
    assert_lost(lab_server, session_id)


def test_a_lab_without_its_work_directory_is_lost(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    lab_server.kill()
    shutil.rmtree(lab_server.work_dir)
    lab_server.start()
    host = fake(lab_server)
    wait_until(lambda: not host.containers() and not host.instances(), 20)
    wait_until(lambda: lab(lab_server, session_id)["error"])
    assert "lost" in lab(lab_server, session_id)["error"]
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200
    assert host.violations() == []


def test_a_lab_from_before_a_reboot_is_lost(server: LabServer) -> None:
    session_id = holder(server)
    server.kill()
    sql(server.database_url, "UPDATE lab_host SET boot_id = 'the boot before'")
    server.start()
    assert_lost(server, session_id, "the lab host was restarted")
    server.restart()  # the same boot again
    wait_until(lambda: lab(server, session_id)["running"])


def test_a_lab_without_references_is_torn_down(server: LabServer) -> None:
    session_id = holder(server)
    waiting = server.join()
    server.kill()
    sql(server.database_url, "UPDATE session SET state = 'ended' WHERE session_id = ?", session_id)
    server.start()
    assert is_active(server, waiting)
    wait_until(server.is_clean)
    assert server.acquire(waiting, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []


def test_a_lab_is_torn_down_with_its_server_unless_told_otherwise(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    assert lab_server.stop() == 0
    assert lab_server.is_clean()
    lab_server.start()
    assert is_active(lab_server, session_id)
    assert "server ended" in lab(lab_server, session_id)["error"]
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200


# Leftovers of a server that was killed


def test_processes_of_an_earlier_start_are_ended_before_the_next_one(lab_server: LabServer) -> None:
    fake(lab_server).control(hang="start", hang_child=True, stubborn=True)
    lab_server.settings["kill-grace"] = "0.5"
    session_id = lab_server.join()
    with in_background(acquire_or_fail, lab_server, session_id):
        pids = [line["pid"] for line in wait_for_event(fake(lab_server), "hang", 2)]
        lab_server.kill()
    assert all(is_running(pid) for pid in pids)

    fake(lab_server).control()
    lab_server.start()
    answer = lab_server.acquire(session_id, TOPOLOGY)  # at once: the acquire waits for the sweep
    assert answer.status_code == 200, answer.text
    assert not any(is_running(pid) for pid in pids)
    assert not answer.json()["reused"]
    assert fake(lab_server).violations() == []
    assert len(lab_server.lab_directories()) == 1
    assert len(fake(lab_server).containers()) == 3


def acquire_or_fail(server: LabServer, session_id: str) -> None:
    with pytest.raises(httpx.TransportError):
        server.acquire(session_id, TOPOLOGY)


def test_an_interrupted_teardown_is_ended_and_repeated(lab_server: LabServer) -> None:
    fake(lab_server).control(hang="down", hang_child=True)
    session_id, waiting = holder(lab_server), lab_server.join()
    assert ask(lab_server, session_id, "DELETE", f"/session/{session_id}").status_code == 204
    pids = [line["pid"] for line in wait_for_event(fake(lab_server), "hang", 2)]
    lab_server.kill()
    fake(lab_server).control()
    lab_server.start()
    assert is_active(lab_server, waiting)
    assert lab_server.acquire(waiting, TOPOLOGY).status_code == 200
    assert not any(is_running(pid) for pid in pids)
    assert fake(lab_server).violations() == []


def test_an_upload_right_after_the_start_survives_the_sweep(lab_server: LabServer) -> None:
    session_id = holder(lab_server)
    lab_server.kill()
    (abandoned_directory(lab_server.work_dir, "left-by-a-crash") / "topology").mkdir()
    next((fake(lab_server).state / "containers").glob("*.json")).unlink()
    fake(lab_server).control(hang="down")
    lab_server.start()
    with in_background(lab_server.acquire, session_id, TOPOLOGY) as call:
        pid = wait_for_event(fake(lab_server), "hang")[0]["pid"]
        wait_until(lambda: len(lab_server.lab_directories()) == 3)  # the lab's, the crash's and the upload's
        fake(lab_server).control()
        os.kill(pid, signal.SIGTERM)  # the sweep comes next
        answer = call.result()
    assert answer.status_code == 200, answer.text
    assert len(lab_server.lab_directories()) == 1


# Graceful shutdown


async def test_a_signal_answers_all_long_polls_at_once(lab_server: LabServer) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=lab_server.url, timeout=60, limits=limits) as client:
        joins = await asyncio.gather(*(client.post("/session") for _ in range(HELD_CALLS + 1)))
        ids = [answer.json()["session_id"] for answer in joins]
        # Ids are given in the order of arrival, which is not the order of the list.
        waiting = [session_id for session_id, answer in zip(ids, joins, strict=True) if answer.json()["position"]]
        calls = [asyncio.create_task(client.get(f"/session/{name}", params={"wait": 60})) for name in waiting]
        held = "last_seen_seconds"
        while True:  # the last-seen time of a session with an open call is now
            entries = (await client.get("/queue")).json()["sessions"][1:]
            if all(entry[held] == 0 for entry in entries):
                break
            assert not any(call.done() for call in calls), [call.result() for call in calls if call.done()]
        lab_server.signal(signal.SIGTERM)
        answers = await asyncio.wait_for(asyncio.gather(*calls), 50)  # the polls would have been held for a minute
    assert len(answers) == HELD_CALLS
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["status"] for answer in answers} == {"waiting"}
    assert all("Retry-After" in answer.headers for answer in answers)
    assert lab_server.wait() == 0


def test_a_server_that_shuts_down_accepts_no_new_sessions(server: LabServer) -> None:
    fake(server).control(down_seconds=1)
    session_id = holder(server)
    with in_background(server.status, server.join(), 60):
        refused: list[httpx.Response] = []
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/healthz").status_code == 204
            server.signal(signal.SIGTERM)
            try:
                while not refused:
                    answer = client.post("/session")
                    refused += [answer] if answer.status_code != 201 else []
            except httpx.TransportError:
                pass
        for answer in refused:
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "try again" in answer.json()["detail"]
    assert server.wait() == 0
    assert server.is_clean()
    rows = sql(server.database_url, "SELECT state FROM session WHERE session_id = ?", session_id)
    assert rows == [("active",)]


@pytest.mark.parametrize("moment", ["start", "down"])
def test_the_shutdown_is_in_time_even_if_netlab_hangs(tmp_path: Path, moment: str) -> None:
    with running_server(tmp_path, exit_timeout="4", kill_grace="30") as server:
        fake(server).control(hang=moment, stubborn=True)
        session_id = server.join()
        with in_background(server.acquire, session_id, TOPOLOGY) as call:
            phase(fake(server), "start")
            if moment == "down":
                assert call.result().status_code == 200
            server.signal(signal.SIGTERM)
            server.wait(25)  # netlab would have 30 seconds
            call.exception()
        fake(server).control()
        server.settings["kill-grace"] = "0.5"
        server.start()
        wait_until(server.is_clean, 20)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200


LONG = {"create_timeout": "3600", "command_timeout": "3600", "exit_timeout": "3600"}
"""Timeouts that are longer than a shutdown may take."""


def test_the_shutdown_answers_running_and_waiting_checks(tmp_path: Path) -> None:
    with running_server(tmp_path, **LONG) as server:
        fake(server).control(hang="create")
        server.join()
        sessions = [server.join(), server.join()]

        def check(session: str, nodes: int) -> httpx.Response:
            files = {"topology": ("topology.yml", topology_text(nodes))}
            return ask(server, session, "POST", "/topology/check", files=files)

        with in_background(check, sessions[0], 1) as running, in_background(check, sessions[1], 2) as waiting:
            wait_for_event(fake(server), "hang")
            wait_until(lambda: len(server.lab_directories()) == 2, 10, "the second check has not arrived")
            server.signal(signal.SIGTERM)
            for answer in (running.result(), waiting.result()):
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["Retry-After"]) > 0
                assert "try again" in answer.json()["detail"]
        assert server.wait() == 0
        assert server.is_clean()


# The list of instances is asked for by the sweep at the start, too.
@pytest.mark.parametrize(("moment", "count"), [("create", 1), ("defaults", 2)])
def test_the_shutdown_does_not_wait_for_a_check_of_the_host(tmp_path: Path, moment: str, count: int) -> None:
    with running_server(tmp_path, **LONG) as server:
        server.stop()
        fake(server).control(hang=moment)
        server.start()
        with in_background(httpx.get, f"{server.url}/readyz", timeout=60) as looked:
            wait_for_event(fake(server), "hang", count)
            server.signal(signal.SIGTERM)
            assert looked.result().status_code == 503
            assert "shutting down" in looked.result().json()["detail"]
        assert server.wait() == 0


def test_the_shutdown_does_not_wait_for_versions_of_tools(tmp_path: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"), {"command-timeout": "3600"})
    server.fake.control(hang="version", stubborn=True)
    try:
        server.start()
        wait_for_event(server.fake, "hang")
        assert server.stop() == 0
    finally:
        server.close()


def test_a_second_signal_ends_the_server_at_once(tmp_path: Path) -> None:
    with running_server(tmp_path, exit_timeout="60") as server:
        fake(server).control(hang="down")
        holder(server)
        server.signal(signal.SIGTERM)
        wait_for_event(fake(server), "hang")
        server.signal(signal.SIGTERM)
        assert server.wait(50) == 128 + signal.SIGTERM  # the first signal would have allowed 60 seconds
        fake(server).control()
        server.start()
        wait_until(server.is_clean, 20)


def test_a_second_server_on_one_sqlite_database_is_refused(lab_server: LabServer, tmp_path: Path) -> None:
    session = lab_server.join()
    database = {"database": f"sqlite+aiosqlite:///{lab_server.database}"}
    second = LabServer(tmp_path / "second", install_fake_netlab(tmp_path / "second" / "fake"), database)
    second.launch()
    assert second.wait(30) == 1
    assert "another server uses the database" in second.log.read_text()
    assert lab_server.status(session)["position"] == 0
    lab_server.kill()
    second.start()
    assert second.status(session)["status"] in {"active", "waiting"}
    second.close()


def test_the_lock_of_the_host_is_released_with_its_server(lab_server: LabServer) -> None:
    second = LabServer(lab_server.root, lab_server.fake)
    second.settings = {"database": f"sqlite+aiosqlite:///{lab_server.root / 'second.sqlite3'}"}
    second.launch()
    assert second.wait(30) == 1
    words = lab_server.log.read_text()
    assert lab_server.process is not None
    assert f"pid {lab_server.process.pid}" in words
    assert os.uname().nodename in words
    lab_server.kill()
    second.start()
    second.close()
