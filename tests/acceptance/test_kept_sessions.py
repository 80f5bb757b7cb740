"""`up`, `down`, `devices` and `log`: labs for manual work in a shell."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from neops_remote_lab.client.state import ProcessRecord
from tests.acceptance.test_log_stream import append
from tests.chaos.shell import in_background, phase, queue, sql
from tests.commands import Shell
from tests.fakes import wait_until
from tests.server import LabServer, running_server


@pytest.fixture
def shell(lab_server: LabServer, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(lab_server.url, tmp_path / "user")
    yield shell
    shell.close()


@pytest.fixture
def up(shell: Shell) -> Shell:
    """A user with a lab."""
    shell.do("up", shell.topology())
    return shell


def keeper_of(shell: Shell) -> psutil.Process:
    record = shell.kept().keeper
    assert record is not None
    found = record.find()
    assert found is not None
    return found


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# Up and down


def test_a_lab_stays_for_later_commands_until_down(shell: Shell, lab_server: LabServer) -> None:
    shown = shell.do("up", shell.topology())
    assert [line.split()[0] for line in shown.splitlines()] == ["node", "r1", "r2"]
    assert shell.do("devices") == shown
    assert queue(lab_server)["sessions"][0]["purpose"] == "neops-remote-lab up"
    keeper = keeper_of(shell)
    assert "the session has ended" in shell.run("down").stderr
    wait_until(lambda: ended(keeper))
    wait_until(lab_server.is_clean)
    assert queue(lab_server)["length"] == 0
    assert list(shell.state) == []
    assert shell.run("devices").returncode == 125


def test_down_without_a_session_does_nothing(shell: Shell) -> None:
    done = shell.run("down")
    assert done.returncode == 0
    assert f"no session with {shell.url} is kept" in done.stderr


def test_a_second_session_of_the_same_name_is_refused(up: Shell, lab_server: LabServer) -> None:
    done = up.run("up", up.topology("other.yml"))
    assert done.returncode == 1
    assert "ospf.yml" in done.stderr
    assert "neops-remote-lab down" in done.stderr
    assert queue(lab_server)["length"] == 1


def test_only_one_up_at_a_time_opens_a_session(shell: Shell, lab_server: LabServer) -> None:
    lab_server.fake.control(start_seconds=60)
    with shell.running("up", shell.topology()):
        phase(lab_server.fake, "start")
        done = shell.run("up", "ospf.yml")
    assert done.returncode == 1
    assert queue(lab_server)["length"] <= 1


def test_an_ended_session_is_replaced_by_the_next_one(up: Shell, lab_server: LabServer) -> None:
    first, keeper = up.kept(), keeper_of(up)
    keeper.suspend()  # so that the background process does not find out first
    sql(lab_server.database, "UPDATE session SET state = 'ended' WHERE state = 'active'")
    wait_until(lambda: queue(lab_server)["length"] == 0)
    keeper.resume()
    up.do("up", "ospf.yml")
    assert up.kept().session_id != first.session_id
    wait_until(lambda: ended(keeper))


def test_two_sessions_have_names(up: Shell, lab_server: LabServer) -> None:
    with in_background(up.run, "up", "ospf.yml", "--session", "second") as second:
        wait_until(lambda: queue(lab_server)["length"] == 2)
        up.do("down")
        assert second.result().returncode == 0
    assert up.run("devices").returncode == 125
    assert "r1" in up.do("devices", "--session", "second")
    assert "r1" in up.do("devices", REMOTE_LAB_SESSION="second")
    up.do("down", "--session", "second")


def test_without_an_address_the_only_saved_session_is_used(up: Shell) -> None:
    del up.environment["REMOTE_LAB_URL"]
    assert "r1" in up.do("devices")
    up.do("down")


@pytest.mark.parametrize(("knobs", "reason"), [({"fail": "start"}, "500"), ({"fail": "create"}, "422")])
def test_no_session_is_kept_for_a_lab_that_fails(
    shell: Shell, lab_server: LabServer, knobs: dict[str, Any], reason: str
) -> None:
    done = shell.run("up", shell.topology(**knobs))
    assert done.returncode == 125
    assert reason in done.stderr
    assert list(shell.state) == []
    assert queue(lab_server)["length"] == 0
    wait_until(lab_server.is_clean)


def test_a_topology_that_is_rejected_while_its_session_waits_leaves_the_queue(
    shell: Shell, lab_server: LabServer
) -> None:
    lab_server.join()
    done = shell.run("up", shell.topology(fail="create"))
    assert done.returncode == 125
    assert done.stderr.startswith("neops-remote-lab: position 1 in the queue")
    assert "ospf.yml: " in done.stderr
    assert queue(lab_server)["length"] == 1


def test_a_terminal_shows_the_wait_and_the_phases_of_the_start_in_one_line(shell: Shell, lab_server: LabServer) -> None:
    shell.environment |= {"CI": "", "BUILD_NUMBER": "", "TERM": "xterm"}
    lab_server.fake.control(start_seconds=2, config_seconds=2)
    ahead = lab_server.join(client="ann@office")
    with shell.terminal("up", shell.topology()) as terminal:
        terminal.wait_for("s]: position 1 in the queue, ")
        with lab_server.client() as client:
            client.delete(f"/session/{ahead}")
        terminal.wait_for("s]: ospf.yml: starting clab nodes")
        terminal.wait_for("s]: ospf.yml: deploying initial device configurations")
        assert terminal.finish() == 0
    status, _, rest = terminal.shown.rpartition("\r\x1b[K")
    assert "deploying" in status
    assert rest.startswith("node")
    shell.do("down")


def test_a_log_has_a_line_for_each_phase_of_the_start(shell: Shell, lab_server: LabServer) -> None:
    lab_server.fake.control(start_seconds=2)
    lines = shell.run("up", shell.topology()).stderr.splitlines()
    assert lines.count("neops-remote-lab: ospf.yml: starting clab nodes") == 1
    assert not [line for line in lines if "\x1b" in line]
    shell.do("down")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_queue(shell: Shell, lab_server: LabServer, number: signal.Signals) -> None:
    lab_server.join(client="ann@office")
    with shell.running("up", shell.topology()) as process:
        assert process.stderr
        assert "position 1 in the queue, " in process.stderr.readline()
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert queue(lab_server)["length"] == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no.yml"], "no.yml: No such file or directory"),
        (["ospf.yml", "--file", "nothing"], "there is no extra file 'nothing'"),
        (["ospf.yml", "--session", "../up"], "'../up' is not a valid name"),
        (["ospf.yml", "--session-timeout", "soon"], "--session-timeout"),
        (["ospf.yml", "--url", "lab-host"], "--url"),
        (["ospf.yml", "--", "true"], "-- true"),
        ([], "TOPOLOGY"),
    ],
)
def test_invalid_arguments_end_with_status_2(shell: Shell, arguments: list[str], named: str) -> None:
    shell.topology()
    done = shell.run("up", *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_an_invalid_variable_is_named(shell: Shell) -> None:
    done = shell.run("up", shell.topology(), REMOTE_LAB_SESSION_TIMEOUT="soon")
    assert done.returncode == 2
    assert "REMOTE_LAB_SESSION_TIMEOUT" in done.stderr


def test_the_wait_in_the_queue_is_limited(shell: Shell, lab_server: LabServer) -> None:
    lab_server.join()
    done = shell.run("up", shell.topology(), "--session-timeout", "0.5")
    assert done.returncode == 125
    assert "not active within 0.5 s" in done.stderr
    assert queue(lab_server)["length"] == 1


# The process that keeps the session alive


def test_the_session_is_kept_alive(up: Shell, lab_server: LabServer) -> None:
    first = queue(lab_server)["sessions"][0]["last_seen_seconds"]
    wait_until(lambda: queue(lab_server)["sessions"][0]["last_seen_seconds"] > 1 + first)
    wait_until(lambda: queue(lab_server)["sessions"][0]["last_seen_seconds"] < 1)


def test_the_background_process_survives_a_hang_up_of_the_terminal(shell: Shell) -> None:
    with shell.terminal("up", shell.topology()) as terminal:
        assert terminal.finish() == 0
    keeper = keeper_of(shell)
    assert keeper.terminal() is None
    assert os.getsid(keeper.pid) == keeper.pid
    shell.do("down")
    wait_until(lambda: ended(keeper))


def test_a_second_background_process_is_refused(up: Shell) -> None:
    first = keeper_of(up)
    command = [sys.executable, "-m", "neops_remote_lab.client.keeper", up.url, "default"]
    done = subprocess.run(command, env=up.environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "another process keeps a session of this name alive" in done.stderr
    assert keeper_of(up) == first


def test_a_killed_background_process_is_replaced_by_the_next_command(up: Shell) -> None:
    first = keeper_of(up)
    first.kill()
    wait_until(lambda: ended(first))
    up.do("devices")
    assert keeper_of(up) != first


def test_an_unrelated_process_with_the_same_pid_is_not_signalled(up: Shell) -> None:
    keeper_of(up).kill()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        record = ProcessRecord(pid=innocent.pid, started=ProcessRecord.of(innocent.pid).started - 3600)
        up.state.save(up.kept().model_copy(update={"keeper": record}))
        up.do("down")
        assert innocent.poll() is None
        innocent.communicate()
    assert innocent.returncode == 1  # of its own


def test_the_state_files_are_readable_only_by_their_user(up: Shell) -> None:
    session_id = up.kept().session_id
    for path in up.state.directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert session_id not in up.do("devices") + up.do("log")
    assert not any(session_id in word for word in keeper_of(up).cmdline())


def test_down_keeps_the_session_when_the_server_does_not_answer(up: Shell, lab_server: LabServer) -> None:
    lab_server.kill()
    done = up.run("down", REMOTE_LAB_UNREACHABLE_TIMEOUT="0.5")
    assert done.returncode == 1
    assert "no answer from" in done.stderr
    assert not ended(keeper_of(up))
    lab_server.start()
    up.do("down")


# Devices and log


def test_devices_as_json_and_as_an_inventory(up: Shell) -> None:
    devices = json.loads(up.do("devices", "--format", "json"))
    assert [device["name"] for device in devices] == ["r1", "r2"]
    inventory = yaml.safe_load(up.do("devices", "--format", "ansible"))
    assert inventory["all"]["children"]["frr"]["hosts"]["r1"] == devices[0]["raw"]


def test_the_log_is_shown_and_followed(up: Shell) -> None:
    assert "OK: Lab devices configured" in up.do("log")
    with up.running("log", "-f") as follower:
        assert follower.stdout
        assert next(line for line in follower.stdout if "OK: Lab devices configured" in line)
        up.do("down")
        assert follower.wait(20) == 0
        assert follower.stderr
        assert "the lab is gone" in follower.stderr.read()


@pytest.mark.parametrize("restart", ["kill", "stop"])
def test_the_log_is_followed_across_a_restart_without_repeated_or_lost_lines(tmp_path: Path, restart: str) -> None:
    with running_server(tmp_path, on_exit="keep") as server:
        shell = Shell(server.url, tmp_path / "user")
        shell.do("up", shell.topology())
        (log,) = server.work_dir.glob("*/netlab.log")
        with shell.running("log", "--follow") as follower:
            assert follower.stdout
            printed = iter(follower.stdout.readline, "")
            seen = [next(line for line in printed if "OK: Lab devices configured" in line)]
            getattr(server, restart)()
            append(log, b"while the server is down\n")
            server.start()
            append(log, b"after the restart\n")
            seen += itertools.takewhile(lambda line: line != "after the restart\n", printed)
            assert seen[1:] == ["while the server is down\n"]
            shell.do("down")
            assert follower.wait(20) == 0
            assert follower.stderr
            assert "the lab is gone" in follower.stderr.read()


def test_a_log_is_no_longer_followed_when_the_server_stays_away(up: Shell, lab_server: LabServer) -> None:
    up.environment["REMOTE_LAB_UNREACHABLE_TIMEOUT"] = "1"
    with up.running("log", "--follow") as follower:
        assert follower.stdout
        next(line for line in follower.stdout if "OK: Lab devices configured" in line)
        lab_server.kill()
        assert follower.wait(20) == 125
        assert follower.stderr
        assert "no answer from" in follower.stderr.read()
    lab_server.start()
    up.do("down")


def test_the_log_shows_how_a_lab_comes_up(shell: Shell, lab_server: LabServer) -> None:
    lab_server.fake.control(start_seconds=60)
    with shell.running("up", shell.topology()) as process:
        phase(lab_server.fake, "start")
        assert "Starting clab nodes" in shell.do("log")
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM
    assert list(shell.state) == []


def test_a_closed_pipe_ends_the_command_quietly(up: Shell) -> None:
    words = " ".join(up.command("devices", "--format", "json"))
    command = ["bash", "-c", f"{words} | true; echo ${{PIPESTATUS[0]}}"]
    done = subprocess.run(command, env=up.environment, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip() in {"0", str(128 + signal.SIGPIPE)}
    assert done.stderr == ""
