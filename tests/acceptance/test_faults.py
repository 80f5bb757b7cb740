"""Faults around the server: disk, database, netlab, clients, clock. Each leads to a clear error."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.api.app import create_app
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.settings import read_settings
from neops_remote_lab.store.sql.migrate import migrate
from tests.chaos.shell import ask, fake, in_background, is_active, is_running, lab, locked, queue, sql, wait_for_event
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, running_server

TOPOLOGY = topology_text(nodes=2)
MEGABYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The mount point of a file system of two megabytes."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={2 * MEGABYTE}", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[LabServer]:
    """A server over each kind of database."""
    with running_server(tmp_path, database=database) as started:
        yield started


def fill(directory: Path) -> Path:
    """Fill a file system completely. Returns the file that does."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 512):
                pass
        except OSError:
            pass
    return filler


def is_refused_for_now(answer: httpx.Response, word: str) -> bool:
    """Whether the response is 503 with the problem of the database and `Retry-After`."""
    detail = answer.json()["detail"]
    return answer.status_code == 503 and word in detail and "try again" in detail and "Retry-After" in answer.headers


# The disk


def test_calls_that_cannot_be_stored_on_a_full_disk_are_refused(tmp_path: Path, small_disk: Path) -> None:
    database = small_disk / "remote-lab.sqlite3"
    with running_server(tmp_path / "server", database=f"sqlite+aiosqlite:///{database}") as server:
        sessions = [server.join() for _ in range(3)]
        filler = fill(small_disk)
        for _ in range(2000):  # SQLite still has free pages in its files
            answer = httpx.post(f"{server.url}/session", json={"purpose": "x" * 200})
            if answer.status_code != 201:
                break
            sessions.append(answer.json()["session_id"])
        assert is_refused_for_now(answer, "full")
        assert httpx.get(f"{server.url}/healthz").status_code == 204
        assert server.status(sessions[1])["position"] == 1

        filler.unlink()
        sessions.append(server.join())
        server.restart()
        assert [server.status(session_id)["position"] for session_id in sessions] == list(range(len(sessions)))
        assert ask(server, sessions[0], "DELETE", f"/session/{sessions[0]}").status_code == 204
        assert is_active(server, sessions[1])


def test_an_upload_to_a_full_disk_is_refused_and_leaves_nothing_behind(tmp_path: Path, small_disk: Path) -> None:
    with running_server(tmp_path / "server", work_dir=str(small_disk / "labs")) as server:
        session_id = server.join()
        large = [("topology", ("topology.yml", TOPOLOGY)), ("extra_files", ("large.bin", b"x" * 3 * MEGABYTE))]
        answer = ask(server, session_id, "POST", "/lab", files=large)
        assert answer.status_code == 507
        assert "Free the disk" in answer.json()["detail"]
        assert server.lab_directories() == []

        filler = fill(small_disk)
        answer = server.acquire(session_id, TOPOLOGY)
        assert answer.status_code in {500, 507}
        assert server.lab_directories() == []
        filler.unlink()
        assert server.acquire(session_id, TOPOLOGY).status_code == 200


# The database


def test_calls_during_a_lock_of_the_database_are_refused_and_work_afterwards(database: str, tmp_path: Path) -> None:
    with running_server(tmp_path, database=database, busy_timeout="0.3", waiting_timeout="600") as server:
        holder, waiting = server.join(), server.join()
        with locked(database):
            assert is_refused_for_now(httpx.post(f"{server.url}/session"), "locked")
            assert is_refused_for_now(ask(server, holder, "DELETE", f"/session/{holder}"), "locked")
            assert is_active(server, holder)
            assert ask(server, waiting, "POST", "/session/heartbeat").status_code == 204
            assert httpx.get(f"{server.url}/healthz").status_code == 204
        assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
        assert is_active(server, waiting)
        assert server.join()


def test_a_lab_whose_start_cannot_be_recorded_is_removed(database: str, tmp_path: Path) -> None:
    with running_server(tmp_path, database=database, busy_timeout="0.3") as server:
        fake(server).control(config_seconds=0.5)
        session_id = server.join()
        with in_background(server.acquire, session_id, TOPOLOGY) as call:
            wait_for_event(fake(server), "phase", phase="config")
            with locked(database):
                assert is_refused_for_now(call.result(), "locked")
        wait_until(lambda: sql(database, "SELECT count(*) FROM lab WHERE state <> 'ended'") == [(0,)])
        wait_until(server.is_clean)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        with locked(database):
            assert is_refused_for_now(ask(server, session_id, "POST", "/lab/release"), "locked")
        assert lab(server, session_id)["ref_count"] == 1
        assert ask(server, session_id, "POST", "/lab/release").status_code == 204
        wait_until(server.is_clean)
        assert fake(server).violations() == []


def test_the_outcome_of_a_lab_is_recorded_once_the_database_can_be_used(database: str, tmp_path: Path) -> None:
    with running_server(tmp_path, database=database, busy_timeout="0.3") as server:
        fake(server).control(config_seconds=0.5, down_seconds=0.5)
        session_id = server.join()
        with in_background(server.acquire, session_id, TOPOLOGY) as call:
            [config] = wait_for_event(fake(server), "phase", phase="config")
            with locked(database):
                wait_for_event(fake(server), "end", pid=config["pid"])
                assert is_refused_for_now(call.result(), "locked")
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        assert ask(server, session_id, "POST", "/lab/release").status_code == 204
        wait_for_event(fake(server), "phase", 2, phase="down")
        with locked(database):
            wait_until(lambda: server.log.read_text().count("will be retried") == 2)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        outcomes = sql(database, "SELECT outcome_code, outcome_detail FROM lab WHERE state = 'ended' ORDER BY number")
    [failed, released] = outcomes
    assert failed[0] == "failed"
    assert "locked" in failed[1]
    assert released == ("released", "released")


def test_a_lab_becomes_usable_once_its_state_is_recorded(server: LabServer) -> None:
    session_id = server.join()
    fake(server).control(config_seconds=0.2)
    with in_background(server.acquire, session_id, TOPOLOGY) as call:
        [config] = wait_for_event(fake(server), "phase", phase="config")
        with locked(server.database_url):
            wait_for_event(fake(server), "end", pid=config["pid"])
            answers = [lab(server, session_id) for _ in range(50)]
            assert {(found["state"], found["running"], found["ref_count"]) for found in answers} == {
                ("starting", False, 0)
            }
        assert call.result().status_code == 200
    found = lab(server, session_id)
    assert (found["state"], found["running"], found["ref_count"]) == ("running", True, 1)


def test_a_session_timeout_during_a_lock_takes_effect_afterwards(database: str, tmp_path: Path) -> None:
    # With several servers in mind, sessions in PostgreSQL are given two more intervals of --last-seen-write.
    limits = {"busy_timeout": "0.1", "waiting_timeout": "1", "active_timeout": "1", "last_seen_write": "0.1"}
    with running_server(tmp_path, database=database, **limits) as server:
        stale = server.join()
        with locked(database):
            wait_until(lambda: "cannot be used" in server.log.read_text())
            assert httpx.get(f"{server.url}/active-session").status_code == 200
        wait_until(lambda: queue(server)["length"] == 0)
        assert httpx.get(f"{server.url}/session/{stale}").status_code == 410
        assert "can be used again" in server.log.read_text()


def garbage(database: Path) -> None:
    database.write_bytes(b"this is no database\n" * 500)


def of_another_program(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE customer (name)")


def of_a_newer_version(database: Path) -> None:
    migrate(f"sqlite+aiosqlite:///{database}")
    sql(database, "UPDATE alembic_version SET version_num = '9999'")


def a_folder(database: Path) -> None:
    database.mkdir()


def damaged(database: Path) -> None:
    migrate(f"sqlite+aiosqlite:///{database}")
    with database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (database.stat().st_size - 4096))


@pytest.mark.parametrize("spoil", [garbage, of_another_program, of_a_newer_version, a_folder, damaged])
def test_an_unusable_database_prevents_the_start(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    spoil(server.database)
    server.launch()
    assert server.wait(30) == 1
    message = server.log.read_text()
    assert str(server.database) in message
    assert "--database" in message
    assert "Traceback" not in message


def test_a_read_only_database_prevents_the_start(tmp_path: Path, small_disk: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    server.settings["database"] = f"sqlite+aiosqlite:///{small_disk / 'remote-lab.sqlite3'}"
    try:
        server.start()
        session_id = server.join()
        server.stop()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        server.launch()
        assert server.wait(30) != 0
        assert "--database" in server.log.read_text()
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
        server.start()
        assert is_active(server, session_id)
    finally:
        server.close()


# netlab


def test_a_missing_netlab_is_reported_and_can_be_installed_later(tmp_path: Path) -> None:
    netlab = tmp_path / "later" / "netlab"
    with running_server(tmp_path, netlab=str(netlab)) as server:
        ready = httpx.get(f"{server.url}/readyz")
        assert ready.status_code == 503
        assert "install it" in ready.json()["detail"]
        session_id = server.join()
        answer = server.acquire(session_id, TOPOLOGY)
        assert answer.status_code == 500
        assert "--netlab" in answer.json()["detail"]
        wait_until(server.is_clean)
        netlab.parent.mkdir()
        netlab.symlink_to(fake(server).bin / "netlab")
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.acquire(session_id, TOPOLOGY).status_code == 200


def test_a_server_works_once_invalid_defaults_of_the_host_are_corrected(tmp_path: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    own = server.fake.home / ".netlab.yml"
    own.write_text("devices: [\n")
    try:
        server.start()
        session_id = server.join()
        answer = server.acquire(session_id, TOPOLOGY)
        assert answer.status_code == 500
        assert "the lab host's own netlab defaults are at fault" in answer.json()["detail"]
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert httpx.get(f"{server.url}/queue").json()["quarantined"] is None
        own.unlink()
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
    finally:
        server.close()


def test_stale_instances_of_netlab_are_removed_before_the_first_start(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        session_id = server.join()
        assert server.acquire(session_id, topology_text(2, provider="external")).status_code == 200
        server.kill()
        shutil.rmtree(server.work_dir / server.lab_directories()[0])
        sql(server.database, "DELETE FROM lab")
        own = server.fake.home / ".netlab.yml"
        own.write_text("devices: [\n")
        server.start()
        assert server.acquire(session_id, TOPOLOGY).status_code == 500
        assert len(server.fake.instances()) == 1
        own.unlink()
        answer = server.acquire(session_id, TOPOLOGY)
        assert answer.status_code == 200, answer.text
        assert len(server.fake.instances()) == 1


@pytest.mark.parametrize("moment", ["create", "probe", "start", "config", "inspect"])
def test_a_netlab_that_hangs_is_ended_with_its_children(tmp_path: Path, moment: str) -> None:
    limits = {"up_timeout": "1", "command_timeout": "1", "create_timeout": "1", "kill_grace": "0.2"}
    with running_server(tmp_path, **limits) as server:
        session_id, waiting = server.join(), server.join()
        fake(server).control(hang=moment, hang_child=True, stubborn=True)
        with in_background(server.acquire, session_id, TOPOLOGY) as call:
            wait_for_event(fake(server), "hang", 2)
            assert server.status(waiting)["position"] == 1  # other clients are served meanwhile
            fake(server).control()
            answer = call.result()
        pids = [line["pid"] for line in fake(server).log() if line["event"] == "hang"]
        assert answer.status_code in {200, 500}  # 200: there is another way to get the result of the command that hung
        if answer.status_code == 500:
            assert "took longer than 1 s" in answer.json()["detail"]
            wait_until(server.is_clean)
        assert not any(is_running(pid) for pid in pids)
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        assert fake(server).violations() == []


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_teardown_that_hangs_is_ended_and_completed_by_force(tmp_path: Path, stubborn: bool) -> None:
    with running_server(tmp_path, down_timeout="1", kill_grace="0.2") as server:
        session_id, waiting = server.join(), server.join()
        assert server.acquire(session_id, TOPOLOGY).status_code == 200
        fake(server).control(hang="down", hang_child=True, stubborn=stubborn)
        assert ask(server, session_id, "DELETE", f"/session/{session_id}").status_code == 204
        assert is_active(server, waiting)
        answer = server.acquire(waiting, TOPOLOGY)  # every attempt hangs: the containers are removed one by one
        assert answer.status_code == 200, answer.text
        assert fake(server).violations() == []
        assert len(server.lab_directories()) == 1
        assert not any(is_running(line["pid"]) for line in fake(server).log() if line["event"] == "hang")


def test_the_children_of_a_killed_netlab_are_ended_too(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    fake(lab_server).control(hang="start", hang_child=True)
    with in_background(lab_server.acquire, session_id, TOPOLOGY) as call:
        leader, child = sorted(wait_for_event(fake(lab_server), "hang", 2), key=lambda line: bool(line["child"]))
        fake(lab_server).control()
        os.kill(leader["pid"], signal.SIGKILL)  # as the out-of-memory killer of the kernel does
        answer = call.result()
    assert answer.status_code == 500
    assert "-9" in answer.json()["detail"]
    wait_until(lambda: not is_running(child["pid"]), 5)
    wait_until(lab_server.is_clean)


def test_megabytes_of_netlabs_output_do_not_reach_a_response(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    fake(lab_server).control(spam_bytes=20 * MEGABYTE, config_seconds=1, fail="inspect")
    with in_background(lab_server.acquire, session_id, TOPOLOGY) as call:
        wait_for_event(fake(lab_server), "phase", phase="config")
        fake(lab_server).control()  # the devices are read again at the end, and this succeeds
        answer = call.result()
    assert answer.status_code == 200, answer.text
    log = ask(lab_server, session_id, "GET", "/lab/log")
    assert log.status_code == 200
    assert len(log.content) <= 9 * MEGABYTE
    assert ask(lab_server, session_id, "DELETE", "/lab").status_code == 202
    wait_until(lab_server.is_clean)

    fake(lab_server).control(spam_bytes=20 * MEGABYTE, fail="config")
    answer = lab_server.acquire(session_id, TOPOLOGY)
    assert answer.status_code == 500
    assert len(answer.content) < 20_000
    assert "netlab initial failed" in answer.json()["detail"]
    wait_until(lab_server.is_clean)


def test_unreadable_devices_are_not_an_error_of_the_topology(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    fake(lab_server).control(spam_bytes=MEGABYTE)
    answer = lab_server.acquire(session_id, TOPOLOGY)
    assert answer.status_code == 500
    assert "x" * 1000 not in answer.text
    wait_until(lab_server.is_clean)
    fake(lab_server).control()
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200


@pytest.mark.parametrize("moment", ["create", "start", "inspect"])
def test_a_traceback_of_netlab_is_not_shown(lab_server: LabServer, moment: str) -> None:
    session_id = lab_server.join()
    fake(lab_server).control(traceback=moment)
    answer = lab_server.acquire(session_id, TOPOLOGY)
    assert answer.status_code in {422, 500}
    assert "Traceback" not in answer.text
    assert str(lab_server.root) not in answer.text
    assert f"die in phase {moment}" in answer.text
    wait_until(lab_server.is_clean)
    fake(lab_server).control()
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200


# Clients


def test_an_interrupted_upload_leaves_nothing_behind(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    head = (
        f"POST /lab HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {session_id}\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="topology"; filename="topology.yml"\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", lab_server.port)) as connection:
        connection.sendall(head.encode() + b"#" * 600_000)
        wait_until(lab_server.lab_directories)
    wait_until(lambda: not lab_server.lab_directories())
    assert fake(lab_server).invocations("up") == []
    assert is_active(lab_server, session_id)
    assert lab_server.acquire(session_id, TOPOLOGY).status_code == 200


def test_the_lab_of_a_disconnected_client_stays_with_its_session(lab_server: LabServer) -> None:
    session_id = lab_server.join()
    fake(lab_server).control(config_seconds=1)
    with lab_server.client(session_id) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/lab", files={"topology": ("topology.yml", TOPOLOGY)}, timeout=0.5)
    wait_until(lambda: lab(lab_server, session_id)["running"])
    assert lab(lab_server, session_id)["ref_count"] == 0
    answer = lab_server.acquire(session_id, TOPOLOGY)
    assert answer.status_code == 200
    assert lab(lab_server, session_id)["ref_count"] == 1
    assert len(fake(lab_server).invocations("up")) == 1
    assert ask(lab_server, session_id, "POST", "/lab/release").status_code == 204
    wait_until(lab_server.is_clean)


# The clock


class JumpingClock(Clock):
    """A wall clock that the test can set. The monotonic clock is not affected."""

    def __init__(self) -> None:
        self.wrong = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.wrong


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_jump_of_the_wall_clock_ends_no_session(
    tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"sqlite+aiosqlite:///{tmp_path / 'remote-lab.sqlite3'}"
    await asyncio.to_thread(migrate, url)
    settings = read_settings(
        ServiceSettings,
        {
            "database": url,
            "work_dir": tmp_path / "labs",
            "lock_dir": tmp_path / "locks",
            "docker": str(tmp_path / "no-docker"),
            "sql_poll": 0.02,
            "waiting_timeout": 60,
            "active_timeout": 60,
            "max_hold": 60,
        },
        {},
    )
    clock = JumpingClock()
    app = create_app(settings, clock)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://lab") as client,
    ):

        async def join() -> str:
            return str((await client.post("/session")).json()["session_id"])

        async def positions(*sessions: str) -> list[int]:
            return [(await client.get(f"/session/{name}")).json()["position"] for name in sessions]

        async def reconciled() -> None:
            """Wait until the maintenance loop has run: it ends the new session, as configured."""
            marker = await join()
            statement = "UPDATE session SET state = 'ended' WHERE session_id = ?"
            await asyncio.to_thread(sql, tmp_path / "remote-lab.sqlite3", statement, marker)
            assert (await client.get(f"/session/{marker}", params={"wait": 10})).status_code == 410

        first, second = await join(), await join()
        clock.wrong = timedelta(hours=hours)
        await reconciled()
        third = await join()
        assert await positions(first, second, third) == [0, 1, 2]
        for entry in (await client.get("/queue")).json()["sessions"]:
            assert entry["age_seconds"] >= 0
            assert entry["last_seen_seconds"] < 60
        assert (await client.delete(f"/session/{first}")).status_code == 204
        clock.wrong = timedelta()
        await reconciled()
        assert await positions(second, third) == [0, 1]
