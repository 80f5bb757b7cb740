"""`neops-remote-lab run`: a command that runs while a lab is up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.shell import phase, queue, sql
from tests.commands import Shell, environment_of
from tests.fakes import wait_until
from tests.server import LabServer, running_server

TRAP = """
import pathlib, signal, sys, time
def note(number, _):
    with open("signals", "a") as file: file.write(f"{number}\\n")
    if number in {ending}: sys.exit(9)
for number in (1, 2, 3, 10, 12, 15): signal.signal(number, note)
pathlib.Path("ready").touch()
while True: time.sleep(0.05)
"""


@pytest.fixture
def shell(lab_server: LabServer, tmp_path: Path) -> Iterator[Shell]:
    """A shell. At the end of the test the server has no session and no lab."""
    shell = Shell(lab_server.url, tmp_path / "user")
    shell.topology()
    yield shell
    wait_until(lambda: queue(lab_server)["length"] == 0, 20)
    wait_until(lab_server.is_clean, 20)
    assert list(shell.directory.glob("neops-remote-lab-*")) == []


def trap(shell: Shell, ending: tuple[int, ...]) -> list[str]:
    """A command that records the signals it gets, and ends with status 9 on the given ones."""
    (shell.directory / "trap.py").write_text(TRAP.replace("{ending}", str(tuple(map(int, ending)))), encoding="utf-8")
    return ["run", "ospf.yml", "--", "python3", "trap.py"]


def wait_for_command(shell: Shell) -> None:
    wait_until((shell.directory / "ready").exists, 30)


def signals(shell: Shell) -> list[int]:
    path = shell.directory / "signals"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


# Environment of the command


def test_the_exit_status_is_that_of_the_command(shell: Shell) -> None:
    done = shell.run("run", "ospf.yml", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.endswith("\nerr\n")


def test_the_command_finds_inventories_and_the_session(shell: Shell) -> None:
    script = 'env; cat "$REMOTE_LAB_DEVICES" > devices; cat "$REMOTE_LAB_ANSIBLE_INVENTORY" > ansible'
    script += '; cat "$REMOTE_LAB_NORNIR_CONFIG" > nornir; cp "$(dirname "$REMOTE_LAB_NORNIR_CONFIG")"/* .'
    found = environment_of(shell.do("run", "ospf.yml", "--", "sh", "-c", script))
    assert found["REMOTE_LAB_URL"] == shell.url
    assert len(found["REMOTE_LAB_SESSION_ID"]) == 32
    assert found["ANSIBLE_INVENTORY"] == found["REMOTE_LAB_ANSIBLE_INVENTORY"]
    devices = json.loads((shell.directory / "devices").read_text())
    assert [device["name"] for device in devices] == ["r1", "r2"]
    hosts = yaml.safe_load((shell.directory / "ansible").read_text())["all"]["children"]["frr"]["hosts"]
    assert hosts == {device["name"]: device["raw"] for device in devices}
    options = yaml.safe_load((shell.directory / "nornir").read_text())["inventory"]["options"]
    assert [Path(path).name for path in options.values()] == ["hosts.yaml", "groups.yaml", "defaults.yaml"]
    host = yaml.safe_load((shell.directory / "hosts.yaml").read_text())["r1"]
    assert host["hostname"] == devices[0]["raw"]["mgmt"]["ipv4"]
    assert host["groups"] == ["frr"]


def test_variables_of_ansible_that_are_set_already_stay(shell: Shell) -> None:
    found = environment_of(shell.do("run", "ospf.yml", "--", "env", ANSIBLE_INVENTORY="mine", PS1="x"))
    assert found["ANSIBLE_INVENTORY"] == "mine"


def test_other_commands_work_on_the_same_lab(shell: Shell) -> None:
    words = " ".join(shell.command("devices"))
    assert "r1" in shell.do("run", "ospf.yml", "--", "sh", "-c", words)


def test_the_queue_shows_the_command(shell: Shell, lab_server: LabServer) -> None:
    with shell.running(*trap(shell, (15,))) as process:
        wait_for_command(shell)
        assert queue(lab_server)["sessions"][0]["purpose"] == "neops-remote-lab run python3 trap.py"
        process.terminate()
        process.wait(20)


# Without a lab


@pytest.mark.parametrize(("knobs", "reason"), [({"fail": "start"}, "500"), ({"fail": "create"}, "422")])
def test_a_lab_that_fails_has_a_status_of_its_own(shell: Shell, knobs: dict[str, Any], reason: str) -> None:
    done = shell.run("run", shell.topology(**knobs), "--", "touch", "ran")
    assert done.returncode == 125
    assert reason in done.stderr
    assert not (shell.directory / "ran").exists()


def test_a_missing_command_is_reported_before_the_wait(shell: Shell, lab_server: LabServer) -> None:
    (shell.directory / "text").touch()
    assert shell.run("run", "ospf.yml", "--", "no-such-program").returncode == 127
    assert shell.run("run", "ospf.yml", "--", "./text").returncode == 126
    assert shell.run("run", "ospf.yml").returncode == 2
    assert lab_server.fake.invocations("up") == []


def test_a_session_that_an_operator_ends_ends_the_command(shell: Shell, lab_server: LabServer) -> None:
    with shell.running(*trap(shell, (15,))) as process:
        wait_for_command(shell)
        sql(lab_server.database, "UPDATE session SET state = 'ended', end_detail = 'for a demo'")
        assert process.wait(30) == 125
        assert process.stderr
        assert "for a demo" in process.stderr.read()
    assert signals(shell) == [15]


def test_the_position_and_the_estimated_wait_are_shown(shell: Shell, lab_server: LabServer) -> None:
    shell.do("run", "ospf.yml", "--", "sleep", "5")  # a history to estimate from
    holder = lab_server.join(client="ann@office")
    with shell.running("run", "ospf.yml", "--", "true") as process:
        assert process.stderr
        line = process.stderr.readline()
        with lab_server.client() as client:
            client.delete(f"/session/{holder}")
        assert process.wait(30) == 0
    assert line.startswith("neops-remote-lab: position 1 in the queue, about ")
    assert "ann@office" in line


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_is_passed_on_to_the_command(shell: Shell, number: signal.Signals) -> None:
    with shell.running(*trap(shell, (number,))) as process:
        wait_for_command(shell)
        process.send_signal(number)
        assert process.wait(20) == 9
    assert signals(shell) == [number]


def test_a_signal_that_ends_the_command_is_in_the_exit_status(shell: Shell) -> None:
    done = shell.run("run", "ospf.yml", "--", "sh", "-c", "kill -KILL $$")
    assert done.returncode == 128 + signal.SIGKILL


def test_a_key_reaches_the_command_once(shell: Shell) -> None:
    with shell.terminal(*trap(shell, (15,))) as terminal:
        wait_for_command(shell)
        terminal.type("\x03")
        wait_until(lambda: signals(shell) == [signal.SIGINT])
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.finish() == 9
    assert signals(shell) == [signal.SIGINT, signal.SIGTERM]


def test_a_cancelled_job_frees_the_lab_even_if_its_command_continues(shell: Shell, lab_server: LabServer) -> None:
    with shell.running(*trap(shell, ())) as process:
        wait_for_command(shell)
        process.terminate()
        wait_until(lambda: queue(lab_server)["length"] == 0, 5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGKILL
    assert signals(shell)[0] == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_lab_starts_ends_it(shell: Shell, lab_server: LabServer, number: signal.Signals) -> None:
    lab_server.fake.control(start_seconds=60)
    with shell.running("run", "ospf.yml", "--", "touch", "ran") as process:
        phase(lab_server.fake, "start")
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert not (shell.directory / "ran").exists()


def test_a_killed_job_frees_the_lab_after_the_session_timeout(tmp_path: Path) -> None:
    with running_server(tmp_path, active_timeout="1") as server:
        shell = Shell(server.url, tmp_path / "user")
        shell.topology()
        with shell.running("run", "ospf.yml", "--", "sleep", "60") as process:
            wait_until(lambda: bool(queue(server)["sessions"]) and "r1" in str(server.fake.containers()), 30)
            process.kill()
        wait_until(lambda: queue(server)["length"] == 0, 20)
        wait_until(server.is_clean, 20)


# The queue


def test_the_queue_is_watched(shell: Shell, lab_server: LabServer) -> None:
    with shell.running("queue", "--watch", "--json") as watcher:
        assert watcher.stdout
        assert json.loads(watcher.stdout.readline())["length"] == 0
        session = lab_server.join(client="ann@office")
        assert json.loads(watcher.stdout.readline())["sessions"][0]["client"] == "ann@office"
        with lab_server.client() as client:
            client.delete(f"/session/{session}")
        assert json.loads(watcher.stdout.readline())["length"] == 0
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(10) == 128 + signal.SIGINT


def test_the_queue_is_redrawn_on_a_terminal(shell: Shell, lab_server: LabServer) -> None:
    with shell.terminal("queue", "--watch") as terminal:
        terminal.wait_for("\x1b[H\x1b[Jnobody waits")
        session = lab_server.join(client="ann@office")
        terminal.wait_for("ann@office")
        terminal.type("\x03")
        assert terminal.finish() == 128 + signal.SIGINT
    with lab_server.client() as client:
        client.delete(f"/session/{session}")


def test_the_queue_as_json_is_the_response_of_the_server(shell: Shell, lab_server: LabServer) -> None:
    with lab_server.client() as client:
        assert json.loads(shell.do("queue", "--json")) == client.get("/queue").json()
