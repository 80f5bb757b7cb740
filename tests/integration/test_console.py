"""`neops-remote-lab console` on a terminal, with a stub server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection

from tests.commands import Shell
from tests.fakes import wait_until
from tests.stub_server import StubServer


class Console:
    """A console that records its input, and sends it back."""

    def __init__(self) -> None:
        self.received = b""
        self.sizes: list[list[int]] = []

    async def serve(self, connection: ServerConnection) -> None:
        await connection.send(b"router> ")
        async for message in connection:
            if isinstance(message, str):
                self.sizes.append(json.loads(message)["resize"])
                continue
            self.received += message
            if message == b"\x04":
                return
            if message == b"break":
                await connection.close(4410, "the lab or its session has ended")
            await connection.send(b"[" + message + b"]")


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def server(console: Console) -> Iterator[StubServer]:
    server = StubServer()
    server.handler = console.serve
    yield server
    server.close()


@pytest.fixture
def shell(server: StubServer, tmp_path: Path) -> Shell:
    return Shell(server.url, tmp_path / "user", {"REMOTE_LAB_SESSION_ID": "0" * 32})


def settings_of(descriptor: int) -> list[object]:
    return termios.tcgetattr(descriptor)


def test_each_key_reaches_the_console(shell: Shell, console: Console) -> None:
    with shell.terminal("console", "r1") as terminal:
        terminal.wait_for("router> ")
        terminal.type("\x03")
        terminal.wait_for("[\x03]")
        terminal.type("\x1a\x1c\t")
        wait_until(lambda: console.received == b"\x03\x1a\x1c\t")
        terminal.type("\r~.")
        assert terminal.finish() == 0
    assert console.received == b"\x03\x1a\x1c\t\r"


def test_the_escape_sequences_work_and_are_explained(shell: Shell) -> None:
    with shell.terminal("console", "r1") as terminal:
        terminal.wait_for("console of r1; ~. at the start of a line disconnects")
        terminal.type("~?")
        terminal.wait_for("~.  disconnect\r\n")
        terminal.type("~.")
        assert terminal.finish() == 0


def test_the_console_has_the_size_of_the_terminal(shell: Shell, console: Console) -> None:
    with shell.terminal("console", "r1") as terminal:
        terminal.wait_for("router> ")
        for columns, rows in ((132, 43), (80, 24)):
            terminal.resize(columns, rows)
            wait_until(lambda size=[columns, rows]: console.sizes[-1:] == [size])  # type: ignore[misc]
        terminal.type("~.")
        assert terminal.finish() == 0


@pytest.mark.parametrize("end", ["~.", "\x04", "break", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_terminal_is_restored_at_the_end(shell: Shell, end: str | signal.Signals) -> None:
    with shell.terminal("console", "r1") as terminal:
        before = termios.tcgetattr(terminal.descriptor)
        terminal.wait_for("router> ")
        wait_until(lambda: termios.tcgetattr(terminal.descriptor) != before)
        if isinstance(end, str):
            terminal.type(end)
        else:
            os.kill(terminal.pid, end)
        wait_until(lambda: termios.tcgetattr(terminal.descriptor) == before)
        status = terminal.finish()
    expected = {"~.": 0, "\x04": 0, "break": 125}
    assert status == (expected[end] if isinstance(end, str) else 128 + end)
    assert ("the lab or its session has ended" in terminal.shown) == (end == "break")


def test_input_from_a_pipe_is_sent_and_ends_the_console(shell: Shell, console: Console) -> None:
    done = subprocess.run(
        shell.command("console", "r1"), env=shell.environment, input=b"show version\n", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"router> [show version\n]", b"")
    assert console.received == b"show version\n\x04"
    assert console.sizes == []


@pytest.mark.parametrize("source", ["/dev/null", "script"])
def test_input_from_a_file_is_sent_too(shell: Shell, source: str) -> None:
    (shell.directory / "script").write_text("show version\n")
    with (shell.directory / source).open("rb") as file:
        done = subprocess.run(
            shell.command("console", "r1"), env=shell.environment, stdin=file, capture_output=True, check=False
        )
    assert done.returncode == 0
    assert done.stdout.startswith(b"router> ")


def test_an_unknown_node_is_reported(shell: Shell) -> None:
    done = shell.run("console", "r9")
    assert done.returncode == 125
    assert "the lab has no device 'r9': it has r1" in done.stderr
