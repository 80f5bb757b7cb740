"""Commands in devices, from Python and from the shell, on a fake Docker that runs real programs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client import RemoteLabClient
from tests.commands import Shell
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server"), max_exec_output_bytes="1000", kill_grace="0.5") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LabServer) -> Iterator[RemoteLabClient]:
    """A session with a lab of two routers."""
    topology = server.root / "ospf.yml"
    topology.write_text(topology_text(2))
    with RemoteLabClient(server.url) as client:
        client.acquire(topology)
        yield client
    wait_until(server.is_clean, 20)


@pytest.fixture
def shell(server: LabServer, client: RemoteLabClient, tmp_path: Path) -> Shell:
    """A shell as `neops-remote-lab run` starts it in that session."""
    return Shell(server.url, tmp_path / "user", {"REMOTE_LAB_SESSION_ID": client.session_id})


# From Python


def test_a_command_has_a_status_and_two_outputs(client: RemoteLabClient) -> None:
    result = client.exec("r1", "echo out; echo err >&2; exit 3")
    assert (result.exit_status, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert not result.truncated


def test_a_program_gets_its_arguments_and_input_unchanged(client: RemoteLabClient) -> None:
    assert client.exec("r1", ["printf", "%s|", "$HOME", "a b"]).stdout == b"$HOME|a b|"
    assert client.exec("r1", ["cat"], stdin=b"\x00\xff\n").stdout == b"\x00\xff\n"
    assert client.exec("r1", "printf '\\377' >&2").stderr == b"\xff"


def test_truncated_output_is_reported(client: RemoteLabClient) -> None:
    result = client.exec("r1", "head -c 5000 /dev/zero")
    assert (len(result.stdout), result.truncated) == (1000, True)


def test_a_command_that_takes_too_long_is_a_timeout(client: RemoteLabClient) -> None:
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        client.exec("r1", "sleep 300", timeout=0.2)


def test_an_unknown_device_is_refused(client: RemoteLabClient) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        client.exec("r9", "true")


# From the shell


def test_exec_prints_the_output_and_returns_the_status_of_the_command(shell: Shell) -> None:
    done = shell.run("exec", "r1", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_the_running_configuration_of_a_router(shell: Shell) -> None:
    assert "hostname r2" in shell.do("exec", "r2", "--", "vtysh", "-c", "show running-config")


def test_standard_input_is_passed_on_only_with_the_flag(shell: Shell) -> None:
    for flags, expected in (([], b""), (["-i"], b"a\nb\n")):
        words = shell.command("exec", "r1", *flags, "--", "cat")
        done = subprocess.run(words, env=shell.environment, input=b"a\nb\n", capture_output=True, check=True)
        assert done.stdout == expected


def test_a_command_that_takes_too_long_has_a_status_of_its_own(shell: Shell) -> None:
    assert shell.run("exec", "r1", "--timeout", "0.2", "--", "sleep", "300").returncode == 124


@pytest.mark.parametrize("arguments", [["r9", "--", "true"], ["../r1", "--", "true"]])
def test_an_unknown_node_has_a_status_of_its_own(shell: Shell, arguments: list[str]) -> None:
    done = shell.run("exec", *arguments)
    assert done.returncode == 125
    assert "404" in done.stderr


@pytest.mark.parametrize("arguments", [["r1"], ["r1", "--"], ["--", "true"], ["r1", "--timeout", "0", "--", "true"]])
def test_invalid_arguments_end_with_status_2(shell: Shell, arguments: list[str]) -> None:
    done = shell.run("exec", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_ended_session_is_reported(shell: Shell) -> None:
    done = shell.run("exec", "r1", "--", "true", REMOTE_LAB_SESSION_ID="0" * 32)
    assert done.returncode == 125
    assert "the session was ended by the server" in done.stderr


# Consoles


def test_a_console_is_a_shell_in_the_node(shell: Shell) -> None:
    with shell.terminal("console", "r1") as terminal:
        terminal.type("echo answer $((6 * 7)); stty size; tty\r")
        terminal.wait_for("answer 42")
        terminal.wait_for("24 80")
        terminal.wait_for("/dev/pts/")
        terminal.type("exit 3\r")
        assert terminal.finish() == 3


def test_a_program_in_the_node_gets_every_key(shell: Shell) -> None:
    script = "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done"
    with shell.terminal("console", "r2", "--", "sh", "-c", script) as terminal:
        terminal.wait_for("ready")
        terminal.type("\x03")
        terminal.wait_for("caught")
        terminal.type("\r~.")
        assert terminal.finish() == 0


def test_the_size_of_the_terminal_reaches_the_node(shell: Shell) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done"
    with shell.terminal("console", "r1", "--", "sh", "-c", script) as terminal:
        terminal.wait_for("ready")
        terminal.resize(columns=132, rows=43)
        terminal.wait_for("43 132")
        terminal.type("~.")
        assert terminal.finish() == 0


def test_a_console_ends_with_its_lab(server: LabServer, tmp_path: Path) -> None:
    with running_server(tmp_path) as other:
        session = other.join()
        assert other.acquire(session, topology_text(1)).status_code == 200
        shell = Shell(other.url, tmp_path / "user", {"REMOTE_LAB_SESSION_ID": session})
        with shell.terminal("console", "r1") as terminal:
            terminal.type("echo ready $((6 * 7))\r")
            terminal.wait_for("ready 42")
            with other.client() as client:
                client.delete(f"/session/{session}")
            assert terminal.finish() == 125
            assert "the lab or its session has ended" in terminal.shown
