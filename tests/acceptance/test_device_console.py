"""Consoles of devices through a WebSocket, on a fake Docker that gives real programs a terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.acceptance.test_device_exec import container_file, marked, session_with_lab
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server
from tests.websocket import open_websocket

CUT_WITHIN = 2.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(
        tmp_path_factory.mktemp("server"), kill_grace="0.5", max_session_connections="2", send_timeout="2"
    ) as running:
        yield running


@pytest.fixture
def session(server: LabServer) -> Iterator[str]:
    with session_with_lab(server) as session:
        yield session
    assert marked(server) == []


def open_console(server: LabServer, session: str, node: str = "r1", **query: str | int) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.port}/lab/devices/{node}/console?{httpx.QueryParams(query)}"
    return open_websocket(url, X_Session_ID=session)


def read_until(console: ClientConnection, words: str, timeout: float = 60) -> str:
    """Read the output of the console up to a text."""
    shown, deadline = b"", time.monotonic() + timeout
    while words.encode() not in shown:
        data = console.recv(max(0.0, deadline - time.monotonic()))
        assert isinstance(data, bytes), data
        shown += data
    return shown.decode()


def ending(console: ClientConnection) -> tuple[int | None, int]:
    """Read to the end. Returns the exit status and the close code."""
    status = None
    with suppress(ConnectionClosed):
        while True:
            if isinstance(message := console.recv(60), str):
                status = json.loads(message)["exit_status"]
    assert console.close_code is not None
    return status, console.close_code


def refusal(server: LabServer, session: str, node: str = "r1", **query: str | int) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        open_console(server, session, node, **query)
    response = refused.value.response
    return response.status_code, str(json.loads(bytes(response.body))["detail"])


def test_a_shell_answers_on_a_terminal_until_it_exits(server: LabServer, session: str) -> None:
    with open_console(server, session) as console:
        console.send(b"tty; echo $((6 * 7)); exit 3\n")
        shown = read_until(console, "42\r\n")
        assert "/dev/pts/" in shown
        assert ending(console) == (3, 1000)


def test_a_console_shows_only_output_of_the_node(server: LabServer, session: str) -> None:
    with open_console(server, session, command="echo first; read line") as console:
        assert read_until(console, "\n") == "first\r\n"


def test_the_terminal_has_its_size_from_the_start_and_can_be_resized(server: LabServer, session: str) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.05; done"
    with open_console(server, session, columns=132, rows=50, command=script) as console:
        assert read_until(console, "\n") == "50 132\r\n"
        console.send(json.dumps({"resize": [100, 30]}))
        assert read_until(console, "\n") == "30 100\r\n"
        assert ending(console) == (0, 1000)
    with open_console(server, session, command="stty size") as console:
        assert read_until(console, "\n") == "24 80\r\n"


def test_a_resize_before_the_start_of_the_program_takes_effect(server: LabServer, session: str) -> None:
    with open_console(server, session, command="sleep 1; stty size") as console:
        console.send(json.dumps({"resize": [99, 33]}))
        assert read_until(console, "\n") == "33 99\r\n"


def test_control_characters_go_to_the_program(server: LabServer, session: str) -> None:
    with open_console(server, session, command="sleep 400") as console:
        wait_until(lambda: marked(server, "sleep", "400"), 10, "the command does not begin")
        console.send(b"\x03")
        assert ending(console) == (130, 1000)
    with open_console(server, session, command="cat") as console:
        console.send("é\n".encode())
        assert read_until(console, "é\r\né\r\n")
        console.send(b"\x04")
        assert ending(console) == (0, 1000)


def test_megabytes_are_shown_completely_with_back_pressure(server: LabServer, session: str) -> None:
    with open_console(server, session, command="head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end") as console:
        time.sleep(0.5)
        shown = read_until(console, "end\r\n")
        assert len(shown) == 3_000_000 + len("\r\nend\r\n")
        assert ending(console) == (0, 1000)


def test_input_sent_at_once_is_passed_on_completely(server: LabServer, session: str) -> None:
    line = "y" * 1000 + "\n"
    with open_console(server, session, command="stty -echo; echo ready; head -c 200200 | wc -c") as console:
        read_until(console, "ready\r\n")
        for _ in range(20):
            console.send((line * 10).encode())
        assert read_until(console, "\n").strip() == "200200"


LEAVES: dict[str, Callable[[ClientConnection], None]] = {
    "closes": lambda console: console.close(),
    "breaks off": lambda console: console.socket.close(),
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("script", ["sleep 410", "trap '' HUP TERM; sleep 410 & sleep 410; sleep 410"])
def test_a_program_ends_when_its_websocket_closes(
    server: LabServer, session: str, leave: Callable[[ClientConnection], None], script: str
) -> None:
    console = open_console(server, session, command=script)
    wait_until(lambda: marked(server, "sleep", "410"), 10, "the command does not begin")
    leave(console)
    wait_until(lambda: not marked(server), 10, "the program goes on")


def test_a_program_that_keeps_printing_ends_when_its_websocket_closes(server: LabServer, session: str) -> None:
    console = open_console(server, session, command="while :; do echo 420; done")
    assert console.recv(10)
    time.sleep(0.5)
    console.socket.close()
    wait_until(lambda: not marked(server), 10, "the program goes on")


def test_consoles_end_with_the_lab(server: LabServer, session: str) -> None:
    console = open_console(server, session, command="sleep 430")
    wait_until(lambda: marked(server, "sleep", "430"), 10, "the command does not begin")
    with server.client(session) as client:
        assert client.post("/lab/release").status_code == 204
    began = time.monotonic()
    assert ending(console) == (None, 4410)
    assert time.monotonic() - began < CUT_WITHIN
    wait_until(lambda: not marked(server, "sleep", "430"), CUT_WITHIN, "the program goes on")


def test_invalid_messages_end_a_console(server: LabServer, session: str) -> None:
    for text in ("", "{", "[]", '{"resize": [80]}', '{"resize": [0, 24]}', '{"resize": [80, 99999]}', '{"x": 1}'):
        console = open_console(server, session, command="sleep 440")
        console.send(text)
        assert ending(console) == (None, 1003), text
    wait_until(lambda: not marked(server), 10, "a program goes on")


def test_invalid_requests_are_refused_before_the_upgrade(server: LabServer, session: str) -> None:
    assert refusal(server, "unknown")[0] == 404
    assert refusal(server, session, "r9")[0] == 404
    for query in ({"columns": 0}, {"rows": "x"}, {"columns": 1.5}, {"rows": 65536}, {"command": ""}):
        assert refusal(server, session, **query)[0] == 422, query
    with server.client(session) as client:
        assert client.get("/lab/devices/r1/console").status_code == 426


def test_a_console_counts_as_a_connection(server: LabServer, session: str) -> None:
    consoles = [open_console(server, session, command="sleep 450") for _ in range(3)]
    assert ending(consoles[2]) == (None, 1013)
    for console in consoles:
        console.close()
    wait_until(lambda: not marked(server), 10, "a program goes on")


def test_an_error_of_docker_is_shown(server: LabServer, session: str) -> None:
    with open_console(server, session, command="true") as console:
        ending(console)
    path = container_file(server, "r1")
    path.write_text(path.read_text().replace('"state": "running"', '"state": "exited"'))
    with open_console(server, session) as console:
        assert "is not running" in read_until(console, "\n")
        assert ending(console) == (1, 1000)


def test_a_node_that_netlab_reaches_by_ssh_is_501(server: LabServer, session: str) -> None:
    """The fake netlab's devices of this kind are virtual machines in containers."""
    with server.client(session) as client:
        client.delete("/lab")
    topology = topology_text(1).replace("device: frr", "device: eos")
    assert server.acquire(session, topology).status_code == 200
    status, detail = refusal(server, session)
    assert (status, "connect to its TCP port 22" in detail) == (501, True)
    with open_console(server, session, command="echo here") as console:
        assert read_until(console, "\n") == "here\r\n"
