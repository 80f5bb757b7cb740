"""Several servers with one queue in PostgreSQL, each with its own lab host."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy.engine import make_url

from tests.chaos.shell import is_running, sql
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.postgresql import OWNER, SUPERUSER, Cluster
from tests.server import LabServer, by_flag, free_port

QUICK = {"host_beat": "0.1", "host_lease": "1", "host_gone_after": "2", "proxy_connect_timeout": "0.5"}


@pytest.fixture
def shared(cluster: Cluster) -> Iterator[str]:
    """A PostgreSQL database that several servers use."""
    with cluster.new_database() as url:
        yield url


@contextmanager
def serving(root: Path, database: str, name: str, **settings: str) -> Iterator[LabServer]:
    """Start a server with its own host."""
    root.mkdir(exist_ok=True)
    port = free_port()
    flags = {"database": database, "lab_host": name, "advertise": f"http://127.0.0.1:{port}", **QUICK, **settings}
    fake = install_fake_netlab(root / "fake")
    server = LabServer(root, fake, by_flag(flags), port=port)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def two_servers(root: Path, *databases: str, **settings: str) -> Iterator[tuple[LabServer, LabServer]]:
    """Start two servers that know each other, with the URLs of their databases."""
    with (
        serving(root / "lab-1", databases[0], "lab-1", **settings) as first,
        serving(root / "lab-2", databases[-1], "lab-2", **settings) as second,
    ):
        wait_until(lambda: len(hosts(first)) == len(hosts(second)) == 2, 20, "the servers do not know each other")
        yield first, second


@pytest.fixture
def servers(shared: str, tmp_path: Path) -> Iterator[tuple[LabServer, LabServer]]:
    with two_servers(tmp_path, shared) as started:
        yield started


@pytest.fixture
def patient_servers(shared: str, tmp_path: Path) -> Iterator[tuple[LabServer, LabServer]]:
    """Two servers that never declare a host gone."""
    with two_servers(tmp_path, shared, host_gone_after="600") as started:
        yield started


def call(server: LabServer, session_id: str, method: str, path: str, **options: Any) -> httpx.Response:
    with server.client(session_id) as client:
        return client.request(method, path, **options)


def end(server: LabServer, session_id: str) -> None:
    assert call(server, session_id, "DELETE", f"/session/{session_id}").status_code == 204


def hosts(server: LabServer) -> dict[str, str]:
    """The state of each host, as a server shows it."""
    return {host["name"]: host["state"] for host in httpx.get(f"{server.url}/queue").json()["hosts"]}


def test_one_queue_fills_the_slots_of_all_hosts(servers: tuple[LabServer, LabServer]) -> None:
    first, second = servers
    sessions = [first.join() for _ in range(4)]
    assert [first.status(session)["host"] for session in sessions] == ["lab-1", "lab-2", None, None]
    assert [second.status(session)["position"] for session in sessions] == [0, 0, 1, 2]
    end(second, sessions[0])
    assert first.status(sessions[2], wait=20)["host"] == "lab-1"
    end(first, sessions[1])
    assert second.status(sessions[3], wait=20)["host"] == "lab-2"


def test_a_client_that_waits_at_one_server_is_answered_when_another_one_ends_a_session(
    servers: tuple[LabServer, LabServer],
) -> None:
    first, second = servers
    holders, waiter = [first.join(), first.join()], second.join()
    assert second.status(waiter)["position"] == 1
    end(first, holders[1])
    assert second.status(waiter, wait=20)["position"] == 0


def test_a_heartbeat_at_any_server_keeps_a_session_alive(shared: str, tmp_path: Path) -> None:
    timeouts = {"waiting_timeout": "2", "active_timeout": "2", "last_seen_write": "0.2"}
    with (
        serving(tmp_path / "lab-1", shared, "lab-1", **timeouts) as first,
        serving(tmp_path / "lab-2", shared, "lab-2", **timeouts) as second,
    ):
        session, silent = first.join(), first.join()
        wait_until(lambda: _renewed(second, session) and _is_gone(first, silent), 30, "the silent session is live")
        assert first.status(session)["position"] == 0


def _renewed(server: LabServer, session_id: str) -> bool:
    return call(server, session_id, "POST", "/session/heartbeat").status_code == 204


def _is_gone(server: LabServer, session_id: str) -> bool:
    listed = httpx.get(f"{server.url}/queue").json()["sessions"]
    return session_id[:8] not in {entry["session_id"] for entry in listed}


def test_sessions_of_a_host_that_vanishes_wait_again_or_end_with_their_labs(
    servers: tuple[LabServer, LabServer],
) -> None:
    first, second = servers
    with_lab, without_lab = first.join(), first.join()
    assert first.acquire(with_lab, topology_text(1)).status_code == 200
    end(first, without_lab)
    idle = first.join()
    assert first.status(idle)["host"] == "lab-2"
    second.kill()
    wait_until(lambda: hosts(first)["lab-2"] == "silent", 20, "the host is not declared silent")
    wait_until(lambda: first.status(idle)["position"] == 1, 10, "the session does not wait again")
    assert call(first, with_lab, "GET", "/lab").json()["state"] == "running"
    wait_until(lambda: hosts(first)["lab-2"] == "gone", 20, "the host is not declared gone")
    end(first, with_lab)
    assert first.status(idle, wait=20)["host"] == "lab-1"


def test_a_host_that_comes_back_serves_again_and_its_lost_lab_is_removed(
    servers: tuple[LabServer, LabServer],
) -> None:
    first, second = servers
    here, there = first.join(), second.join()
    assert second.acquire(there, topology_text(1)).status_code == 200
    second.kill()
    wait_until(lambda: hosts(first)["lab-2"] == "gone", 20, "the host is not declared gone")
    answer = httpx.get(f"{first.url}/session/{there}")
    assert answer.status_code == 410
    assert "vanished" in answer.json()["detail"]
    waiter = first.join()
    assert first.status(waiter)["position"] == 1
    second.start()
    assert first.status(waiter, wait=20)["host"] == "lab-2"
    wait_until(second.is_clean, 20, "the lost lab is not removed")
    assert first.status(here)["host"] == "lab-1"


def test_a_server_that_was_stopped_beyond_its_lease_keeps_its_lab(
    servers: tuple[LabServer, LabServer],
) -> None:
    first, second = servers
    first.join()
    there = second.join()
    assert second.acquire(there, topology_text(1)).status_code == 200
    second.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: hosts(first)["lab-2"] == "silent", 20, "the host is not declared silent")
    finally:
        second.signal(signal.SIGCONT)
    wait_until(lambda: hosts(first)["lab-2"] == "live", 20, "the host does not come back")
    assert call(second, there, "GET", "/lab").json()["state"] == "running"
    assert call(second, there, "POST", "/lab/release").status_code == 204
    wait_until(second.is_clean, 20, "the lab is not torn down")


def test_calls_reach_a_lab_whose_server_cannot_reach_the_database(
    shared: str, cluster: Cluster, tmp_path: Path
) -> None:
    begun, release = tmp_path / "begun", tmp_path / "release"
    wait = f"touch {begun}; while [ ! -e {release} ]; do sleep 0.02; done; echo done"
    with (
        database_user(cluster, shared, "cut_off") as (own_url, cut),
        two_servers(tmp_path, shared, own_url, host_gone_after="600", proxy_connect_timeout="5") as (first, second),
        ThreadPoolExecutor(1) as pool,
    ):
        first.join()
        there = first.join()
        assert first.acquire(there, topology_text(1)).status_code == 200
        order = {"command": wait, "timeout": 60}
        command = pool.submit(call, first, there, "POST", "/lab/devices/r1/exec", json=order, timeout=60)
        wait_until(begun.exists, 20, "the command does not begin")
        with cut():
            wait_until(lambda: hosts(first)["lab-2"] == "silent", 20, "the host is not declared silent")
            assert call(first, there, "GET", "/lab").json()["running"]
            assert [device["name"] for device in call(first, there, "GET", "/lab/devices").json()] == ["r1"]
            refused = call(first, there, "POST", "/lab/release")
            assert refused.status_code == 503
            assert "nothing was changed" in refused.json()["detail"]
            release.touch()
            assert "done" in command.result(30).text
        wait_until(lambda: hosts(first)["lab-2"] == "live", 20, "the host does not come back")
        assert call(first, there, "GET", "/lab").json()["ref_count"] == 1
        assert call(first, there, "POST", "/lab/release").status_code == 204
        wait_until(second.is_clean, 20, "the lab is not torn down")


@contextmanager
def database_user(
    cluster: Cluster, database: str, name: str
) -> Iterator[tuple[str, Callable[[], AbstractContextManager[None]]]]:
    """Create a user of the database. Yields its URL, and a context in which it cannot connect."""
    administrator = make_url(database).set(username=SUPERUSER).render_as_string()
    sql(administrator, f"CREATE ROLE {name} LOGIN IN ROLE {OWNER}")

    @contextmanager
    def cut() -> Iterator[None]:
        sql(administrator, f"ALTER ROLE {name} NOLOGIN")
        sql(administrator, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ?", name)
        try:
            yield
        finally:
            sql(administrator, f"ALTER ROLE {name} LOGIN")

    try:
        yield make_url(database).set(username=name).render_as_string(), cut
    finally:
        sql(administrator, f"REASSIGN OWNED BY {name} TO {OWNER}")
        sql(administrator, f"DROP ROLE {name}")


def test_no_call_is_sent_to_a_silent_server_that_does_not_answer(
    patient_servers: tuple[LabServer, LabServer],
) -> None:
    first, second = patient_servers
    first.join()
    there = first.join()
    assert first.acquire(there, topology_text(1)).status_code == 200
    second.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: hosts(first)["lab-2"] == "silent", 20, "the host is not declared silent")
        refused = call(first, there, "POST", "/lab/release")
        assert refused.status_code == 503
        assert "shows no sign of life" in refused.json()["detail"]
    finally:
        second.signal(signal.SIGCONT)
    wait_until(lambda: hosts(first)["lab-2"] == "live", 20, "the host does not come back")
    assert call(first, there, "GET", "/lab").json()["ref_count"] == 1


def test_a_server_that_is_suspended_before_a_start_does_not_start_a_lab_that_was_lost_meanwhile(
    servers: tuple[LabServer, LabServer], shared: str
) -> None:
    first, second = servers
    first.join()
    there = second.join()
    with ThreadPoolExecutor(1) as threads, before_start_of(second) as asked:
        acquire = threads.submit(second.acquire, there, topology_text(1))
        wait_until(asked.exists, 20, "the start does not begin")
        docker = int(asked.read_text())
        second.signal(signal.SIGSTOP)
        try:
            wait_until(lambda: hosts(first)["lab-2"] == "gone", 20, "the host is not declared gone")
            asked.unlink()
            wait_until(lambda: not is_running(docker), 20, "the look at the host does not end")
        finally:
            second.signal(signal.SIGCONT)
        assert acquire.result(30).status_code in {404, 503}
    wait_until(lambda: hosts(first)["lab-2"] == "live", 20, "the host does not come back")
    assert second.fake.invocations("up") == []
    wait_until(second.is_clean, 20, "something of the lab is left")
    assert sql(shared, "SELECT state, outcome_code FROM lab") == [("ended", "lost")]
    waiter = first.join()
    assert first.status(waiter, wait=20)["host"] == "lab-2"
    assert second.acquire(waiter, topology_text(1)).status_code == 200


@contextmanager
def before_start_of(server: LabServer) -> Iterator[Path]:
    """Let the last look at the host before a start wait for the removal of a file, which has the id of its process."""
    docker, asked = server.fake.bin / "docker", server.fake.root / "asked"
    real = docker.rename(docker.with_name("real-docker"))
    wait = f"echo $$ > {asked}.new; mv {asked}.new {asked}; while [ -e {asked} ]; do sleep 0.01; done"
    first = f"mkdir {asked}.once 2> /dev/null"
    docker.write_text(f'#!/bin/sh\nif [ "$1" = network ] && {first}; then {wait}; fi\nexec {real} "$@"\n')
    docker.chmod(0o755)
    try:
        yield asked
    finally:
        real.replace(docker)


def test_a_host_that_is_drained_takes_no_further_session(servers: tuple[LabServer, LabServer], shared: str) -> None:
    first, second = servers
    sql(shared, "UPDATE lab_host SET is_draining = true WHERE name = 'lab-2'")
    wait_until(
        lambda: [host["draining"] for host in httpx.get(f"{first.url}/queue").json()["hosts"]] == [False, True], 10
    )
    sessions = [second.join() for _ in range(2)]
    assert [second.status(session)["host"] for session in sessions] == ["lab-1", None]
    sql(shared, "UPDATE lab_host SET is_draining = false WHERE name = 'lab-2'")
    assert first.status(sessions[1], wait=20)["host"] == "lab-2"


def test_no_server_fills_the_slots_of_a_host_where_a_lab_waits_for_memory(shared: str, tmp_path: Path) -> None:
    short = {"slots": "3", "node_memory": str(psutil.virtual_memory().available * 55 // 100), "memory_reserve": "0"}
    with (
        serving(tmp_path / "lab-1", shared, "lab-1", **short) as first,
        serving(tmp_path / "lab-2", shared, "lab-2") as second,
        ThreadPoolExecutor(1) as threads,
    ):
        wait_until(lambda: len(hosts(first)) == len(hosts(second)) == 2, 20, "the servers do not know each other")
        sessions = [second.join() for _ in range(3)]
        assert [second.status(session)["host"] for session in sessions] == ["lab-1", "lab-2", "lab-1"]
        assert first.acquire(sessions[0], topology_text(1)).status_code == 200
        waiting = threads.submit(first.acquire, sessions[2], topology_text(1))
        wait_until(lambda: held(second) == ["lab-1"], 20, "the other server does not know that grants are held")
        waiters = [second.join(), second.join()]
        assert [second.status(waiter)["position"] for waiter in waiters] == [1, 2]
        end(second, sessions[1])
        assert second.status(waiters[0], wait=20)["host"] == "lab-2"
        end(second, sessions[0])
        assert waiting.result(30).status_code == 200
        assert second.status(waiters[1], wait=20)["host"] == "lab-1"


def held(server: LabServer) -> list[str]:
    """The names of the hosts that hold their grants, according to a server."""
    return [host["name"] for host in httpx.get(f"{server.url}/queue").json()["hosts"] if host["holds_grants"]]


def test_the_metrics_of_a_server_are_about_its_own_slots(servers: tuple[LabServer, LabServer]) -> None:
    first, second = servers
    sessions = [first.join() for _ in range(2)]
    end(first, sessions[0])
    wait_until(lambda: second.status(sessions[1])["host"] == "lab-2", 10)
    for server, line in ((first, '{host="lab-1",slot="1"} 0.0'), (second, '{host="lab-2",slot="1"} 1.0')):
        assert f"neops_remote_lab_slot_active{line}" in httpx.get(f"{server.url}/metrics").text


def test_a_second_server_with_the_name_of_a_host_takes_its_place(shared: str, tmp_path: Path) -> None:
    with serving(tmp_path / "old", shared, "lab-1") as old, serving(tmp_path / "new", shared, "lab-1") as new:
        assert old.wait(30) == 0
        assert "--lab-host" in old.log.read_text()
        assert new.status(new.join())["host"] == "lab-1"


def test_a_client_needs_the_url_of_one_server_only(servers: tuple[LabServer, LabServer]) -> None:
    first, second = servers
    here, there = first.join(), first.join()
    assert first.status(there)["host"] == "lab-2"
    for session, nodes in ((here, 1), (there, 2)):
        answer = first.acquire(session, topology_text(nodes))
        assert (answer.status_code, len(answer.json()["devices"])) == (200, nodes), answer.text
    assert (len(first.fake.containers()), len(second.fake.containers())) == (1, 2)
    assert call(first, there, "GET", "/lab").json()["state"] == "running"
    assert call(first, there, "GET", "/lab/log").status_code == 200
    done = call(first, there, "POST", "/lab/devices/r2/exec", json={"command": ["sh", "-c", "echo $((40+2))"]})
    assert "42" in done.text
    assert call(second, here, "POST", "/lab/release").status_code == 204
    assert call(first, there, "POST", "/lab/release").status_code == 204
    for server in servers:
        wait_until(server.is_clean, 20, "a lab is not torn down")


def test_a_call_to_a_host_that_cannot_be_reached_is_answered_with_503(servers: tuple[LabServer, LabServer]) -> None:
    first, second = servers
    first.join()
    there = first.join()
    second.kill()
    answer = call(first, there, "GET", "/lab")
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


def test_calls_to_a_server_that_froze_end_when_its_host_is_silent(
    patient_servers: tuple[LabServer, LabServer], tmp_path: Path
) -> None:
    first, second = patient_servers
    first.join()
    there, begun = first.join(), tmp_path / "begun"
    assert first.acquire(there, topology_text(1)).status_code == 200
    slow = {"command": f"touch {begun}; exec sleep 100", "timeout": 100}
    with first.client(there) as client, ThreadPoolExecutor(1) as pool:
        command = pool.submit(call, first, there, "POST", "/lab/devices/r1/exec", json=slow, timeout=60)
        wait_until(begun.exists, 20, "the command does not begin")
        with client.stream("GET", "/lab/log", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            next(lines)
            second.signal(signal.SIGSTOP)
            try:
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
                for answer in command.result(20), call(first, there, "GET", "/lab"):
                    assert answer.status_code == 503
                    assert int(answer.headers["Retry-After"]) > 0
                    assert "shows no sign of life" in answer.json()["detail"]
            finally:
                second.signal(signal.SIGCONT)
    wait_until(lambda: hosts(first)["lab-2"] == "live", 20, "the host does not come back")
    assert call(first, there, "GET", "/lab").json()["state"] == "running"
    metrics = httpx.get(f"{first.url}/metrics").text
    for outcome, number in {"silent": 3, "answered": 2}.items():
        assert f'calls_passed_on_total{{host="lab-2",outcome="{outcome}"}} {number}.0' in metrics
