"""The program as an operator starts and ends it."""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

import neops_remote_lab
from neops_remote_lab.core.host_locks import HostLock
from tests.chaos.shell import ask, container_ids, fake, in_background, lab, locked, wait_for_event
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, free_port, running_server

TOPOLOGY = topology_text(2)


@pytest.fixture
def idle(tmp_path: Path) -> LabServer:
    """A server that was not started."""
    return LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))


def run(
    *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, "-m", "neops_remote_lab", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(server: LabServer) -> str:
    """Run a server that does not start. Returns its message."""
    server.launch()
    assert server.wait(30) not in (0, None)
    words = server.log.read_text()
    assert "Traceback" not in words
    return words


def wait_until_gone(server: LabServer) -> int:
    return server.wait(20)


# Flags


def test_the_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("neops-remote-lab ")


def test_the_help_contains_every_flag_that_scripts_use() -> None:
    done = run("--help")
    assert done.returncode == 0
    for flag in ("--host", "--port", "--debug", "--log-level", "--log-config", "--version", "--on-exit", "--max-hold"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--port", "http"], {}, "--port"),
        (["--port", "70000"], {}, "--port"),
        (["--on-exit", "burn"], {}, "--on-exit"),
        (["--colour", "red"], {}, "--colour"),
        (["--waiting-timeout", "-5"], {}, "--waiting-timeout"),
        ([], {"NEOPS_REMOTE_LAB_PORT": "http"}, "NEOPS_REMOTE_LAB_PORT"),
        ([], {"NEOPS_REMOTE_LAB_LOG_LEVEL": "LOUD"}, "NEOPS_REMOTE_LAB_LOG_LEVEL"),
    ],
)
def test_a_wrong_value_ends_the_program_and_names_the_flag_or_the_variable(
    arguments: list[str], environment: dict[str, str], named: str
) -> None:
    done = run(*arguments, environment=environment)
    assert done.returncode not in (0, None)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_lists_the_commands() -> None:
    done = run("--help")
    commands = done.stdout.partition("\ncommands:\n")[2]
    assert "serve " in commands
    assert "queue " in commands


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quee"], "quee"),
        (["queue", "--port", "1"], "--port"),
        (["--port", "1", "queue"], "queue"),
        (["serve", "--url", "http://127.0.0.1:1"], "--url"),
        (["serve", "--port", "http"], "--port"),
    ],
)
def test_a_wrong_use_of_a_command_ends_the_program_with_status_2(arguments: list[str], named: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [[], ["serve"]])
def test_the_server_starts_with_and_without_its_command(idle: LabServer, command: list[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        flags = ["--host", "127.0.0.1", "--port", str(port), "--lock-dir", str(idle.root / "locks")]
        done = run(*command, *flags)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}: address already in use" in done.stderr


def test_a_flag_wins_over_its_variable(idle: LabServer) -> None:
    idle.environment = {"NEOPS_REMOTE_LAB_PORT": "1", "NEOPS_REMOTE_LAB_WAITING_TIMEOUT": "0.3"}
    idle.settings = {"active-timeout": "60"}
    idle.start()
    try:
        idle.join()
        waiter = idle.join()
        wait_until(lambda: httpx.get(f"{idle.url}/queue").json()["length"] == 1)
        assert httpx.get(f"{idle.url}/session/{waiter}").status_code == 410
    finally:
        idle.close()


def test_the_variable_for_workers_of_uvicorn_is_ignored(idle: LabServer) -> None:
    idle.environment = {"WEB_CONCURRENCY": "4"}
    idle.start()
    try:
        assert idle.status(idle.join())["position"] == 0
        assert "Started parent process" not in idle.log.read_text()
    finally:
        idle.close()


def test_a_free_port_can_be_asked_for_and_is_logged(idle: LabServer) -> None:
    idle.settings = {"port": "0"}
    idle.launch()
    try:
        wait_until(lambda: "Uvicorn running on http://127.0.0.1:" in idle.log.read_text(), 30)
        port = idle.log.read_text().split("Uvicorn running on http://127.0.0.1:")[1].split()[0]
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 204
    finally:
        idle.close()


def test_a_log_configuration_is_applied(idle: LabServer, tmp_path: Path) -> None:
    target = tmp_path / "target.log"
    handler = {"class": "logging.FileHandler", "filename": str(target), "formatter": "own"}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"own": {"format": "OWN %(message)s"}},
        "handlers": {"file": handler},
        "root": {"handlers": ["file"], "level": "INFO"},
    }
    (tmp_path / "log.json").write_text(json.dumps(config))
    idle.settings = {"log-config": str(tmp_path / "log.json")}
    idle.start()
    idle.close()
    assert "OWN Started server process" in target.read_text()


@pytest.mark.parametrize("content", ["{", '{"version": 7}', None])
def test_an_invalid_log_configuration_ends_the_program(idle: LabServer, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "log.json").write_text(content)
    idle.settings = {"log-config": str(tmp_path / "log.json")}
    assert "log" in refusal(idle)


# One server per host


def test_a_second_server_ends_at_once_and_names_the_first(lab_server: LabServer) -> None:
    assert lab_server.process
    second = LabServer(lab_server.root / "second", lab_server.fake, {"lock-dir": str(lab_server.root / "locks")})
    second.root.mkdir()
    words = refusal(second)
    for named in (f"pid {lab_server.process.pid}", getpass.getuser(), socket.gethostname(), str(lab_server.port)):
        assert named in words
    started = datetime.fromisoformat(words.split("started ")[1].split()[0].rstrip("."))
    assert timedelta(0) <= datetime.now(UTC) - started < timedelta(minutes=2)
    assert not second.database.exists()
    assert lab_server.status(lab_server.join())["position"] == 0


def test_a_second_server_is_refused_even_if_the_first_one_is_unknown(lab_server: LabServer) -> None:
    HostLock(lab_server.root / "locks", "server").write_note("{")
    second = LabServer(lab_server.root / "second", lab_server.fake, {"lock-dir": str(lab_server.root / "locks")})
    second.root.mkdir()
    assert "another server runs on this host" in refusal(second)


def test_lock_files_of_an_ended_server_do_not_prevent_the_next_start(lab_server: LabServer) -> None:
    lab_server.acquire(lab_server.join(), TOPOLOGY)
    lab_server.kill()
    names = {f"neops-remote-lab-{name}.{os.geteuid()}.lock" for name in ("server", "lab")}
    assert names <= {path.name for path in (lab_server.root / "locks").iterdir()}
    lab_server.start()


# Starts that fail


def test_a_port_in_use_ends_the_program_before_it_changes_anything(idle: LabServer) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", idle.port))
        listener.listen()
        words = refusal(idle)
    assert f"127.0.0.1:{idle.port}: address already in use by pid {os.getpid()}" in words
    assert "startup" not in words
    assert not idle.database.exists()
    assert not idle.work_dir.exists()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_host_ends_the_program(idle: LabServer, host: str) -> None:
    idle.settings = {"host": host}
    words = refusal(idle)
    assert f"it cannot listen on {host}:{idle.port}" in words
    assert not idle.database.exists()


def test_a_mistyped_variable_ends_the_program(idle: LabServer) -> None:
    idle.environment = {"NEOPS_REMOTE_LAB_PROT": "9000"}
    assert "NEOPS_REMOTE_LAB_PORT may be meant" in refusal(idle)


def test_the_database_of_a_newer_version_is_refused_and_not_changed(idle: LabServer) -> None:
    with closing(sqlite3.connect(idle.database)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    before = idle.database.read_bytes()
    words = refusal(idle)
    assert "schema 9999" in words
    assert "newer" in words
    assert idle.database.read_bytes() == before


@pytest.mark.parametrize("kind", ["another program's", "no database", "a directory"])
def test_a_foreign_file_in_place_of_the_database_is_refused_and_not_changed(idle: LabServer, kind: str) -> None:
    if kind == "another program's":
        with closing(sqlite3.connect(idle.database)) as database:
            database.execute("CREATE TABLE recipes (name TEXT)")
    elif kind == "no database":
        idle.database.write_text("dear diary, " * 1000)
    else:
        idle.database.mkdir()
    before = idle.database.read_bytes() if idle.database.is_file() else b""
    words = refusal(idle)
    assert str(idle.database) in words
    assert "--database" in words
    assert before == (idle.database.read_bytes() if idle.database.is_file() else b"")


@pytest.mark.parametrize("url", ["postgresql://db/labs", "sqlite:///labs.db", "labs.db"])
def test_a_database_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    done = run("--database", url, "--lock-dir", str(tmp_path / "locks"), "--port", "0", cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    assert "sqlite+aiosqlite" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["locks"]  # no file of that name was made


def test_a_lock_directory_that_cannot_be_created_is_refused(idle: LabServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    idle.settings = {"lock-dir": str(tmp_path / "file" / "locks")}
    assert "--lock-dir" in refusal(idle)


def test_a_network_of_labs_that_the_host_uses_is_refused(idle: LabServer) -> None:
    idle.settings |= {"slots": "2", "lab-network": "127.0.0.0/16"}
    words = refusal(idle)
    assert "127.0.0.0/16" in words
    assert "--lab-network" in words


def test_a_work_directory_that_cannot_be_created_is_refused(idle: LabServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    idle.settings = {"work-dir": str(tmp_path / "file" / "labs")}
    assert "--work-dir" in refusal(idle)


# Shutdown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_leaves_nothing_behind_after_sigterm(lab_server: LabServer, number: signal.Signals) -> None:
    session_id = lab_server.join()
    lab_server.acquire(session_id, TOPOLOGY)
    lab_server.signal(number)
    assert wait_until_gone(lab_server) == 0
    assert lab_server.is_clean()
    lab_server.start()
    assert lab_server.status(session_id)["position"] == 0
    assert lab(lab_server, session_id)["state"] == "none"


def test_a_kept_lab_is_adopted_by_the_next_server(tmp_path: Path) -> None:
    with running_server(tmp_path, on_exit="keep") as server:
        session_id = server.join()
        server.acquire(session_id, TOPOLOGY)
        before = container_ids(fake(server))
        assert server.stop() == 0
        assert container_ids(fake(server)) == before
        server.start()
        assert [device["name"] for device in lab(server, session_id)["devices"]] == ["r1", "r2"]
        assert len(fake(server).invocations("up")) == 1
        assert ask(server, session_id, "POST", "/lab/release").status_code == 204
        wait_until(server.is_clean, 20)


def test_a_lab_is_kept_while_another_program_locks_the_database(tmp_path: Path) -> None:
    with running_server(tmp_path, on_exit="keep", busy_timeout="0.2") as server:
        session_id = server.join()
        server.acquire(session_id, TOPOLOGY)
        before = container_ids(fake(server))
        with locked(server.database):
            server.signal(signal.SIGTERM)
            wait_until_gone(server)
        assert container_ids(fake(server)) == before
        server.start()
        assert lab(server, session_id)["state"] == "running"


def test_a_signal_answers_a_long_poll_at_once(lab_server: LabServer) -> None:
    lab_server.join()
    waiter = lab_server.join()
    with in_background(lab_server.status, waiter, 60) as held:
        entry = f"{lab_server.url}/queue"
        wait_until(lambda: httpx.get(entry).json()["sessions"][1]["last_seen_seconds"] == 0)
        lab_server.signal(signal.SIGTERM)
        assert held.result(5)["status"] == "waiting"
    assert wait_until_gone(lab_server) == 0


def test_a_signal_interrupts_a_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with running_server(tmp_path, kill_grace="0.2") as server:
        session_id = server.join()
        fake(server).control(hang="start")
        with in_background(server.acquire, session_id, TOPOLOGY) as answer:
            wait_for_event(fake(server), "hang")
            fake(server).control()
            server.signal(signal.SIGTERM)
            assert wait_until_gone(server) == 0
            assert answer.exception() or answer.result().status_code == 503
        assert server.is_clean()


def test_a_second_signal_ends_the_server_at_once(lab_server: LabServer) -> None:
    lab_server.acquire(lab_server.join(), topology_text(1, hang="down"))
    lab_server.signal(signal.SIGTERM)
    wait_for_event(fake(lab_server), "hang")
    assert lab_server.process
    assert lab_server.process.poll() is None
    lab_server.signal(signal.SIGTERM)
    assert lab_server.wait(5) == 128 + signal.SIGTERM
    for line in wait_for_event(fake(lab_server), "hang"):
        os.kill(line["pid"], signal.SIGKILL)


def test_the_queue_is_shown_on_a_terminal(lab_server: LabServer) -> None:
    holder = lab_server.join(client="ann@office", purpose="nightly")
    lab_server.join(client="bob@office")
    assert lab_server.acquire(holder, topology_text(1), "ospf.yml").status_code == 200
    command = [sys.executable, "-m", "neops_remote_lab", "queue", "--url", lab_server.url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].split() == [
        "position",
        "session",
        "state",
        "since",
        "last",
        "seen",
        "client",
        "purpose",
        "topology",
    ]
    assert shown[1].split()[:3] == ["0", holder[:8], "active"]
    assert shown[1].split()[-3:] == ["ann@office", "nightly", "ospf.yml"]
    assert shown[2].split()[0] == "1"
    assert holder not in "".join(shown)


def test_a_failed_request_of_the_queue_names_the_address() -> None:
    command = [sys.executable, "-m", "neops_remote_lab", "queue", "--url", f"http://127.0.0.1:{free_port()}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "Is the server running there? Name another address with --url" in shown.stderr
    assert "Traceback" not in shown.stderr
