"""Forwarded ports, against a server that answers as it is told and devices that are programs of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from websockets.asyncio.server import ServerConnection

from neops_remote_lab.client.access import Access, Credentials
from neops_remote_lab.client.forwards import Forward, Forwards
from neops_remote_lab.client.web_sockets import WebSockets
from tests.fakes import wait_until
from tests.stub_server import StubServer


@pytest.fixture
def server() -> Iterator[StubServer]:
    server = StubServer()
    yield server
    server.close()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def forwards(server: StubServer, told: list[str]) -> Iterator[Forwards]:
    access = Access(server.url, Credentials("secret"))
    with Forwards(WebSockets(access, "0123456789abcdef", 5), told.append) as forwards:
        yield forwards


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def expect_reset(forward: Forward) -> None:
    """Connect, and find the connection reset."""
    with socket.create_connection((forward.host, forward.port)) as connection, pytest.raises(ConnectionResetError):
        read_all(connection)


def send_until_nobody_reads(connection: socket.socket) -> int:
    """How many bytes went out until nothing was taken for half a second."""
    connection.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += connection.send(bytes(1 << 16))
    return sent


def test_what_goes_in_comes_out_at_the_other_end(server: StubServer, forwards: Forwards) -> None:
    data = bytes(range(256)) * 40_000
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < len(data):
            received += connection.recv(1 << 20)
        sender.join()
    assert received == data
    (request,) = server.requests
    assert request.path == "/lab/devices/r1/tcp/22"
    assert request.headers["X-Session-ID"] == "0123456789abcdef"
    assert request.headers["Authorization"] == "Bearer secret"


def test_it_serves_many_connections_at_once(forwards: Forwards) -> None:
    with forwards.open("r1", 22) as forward:
        connections = [socket.create_connection((forward.host, forward.port)) for _ in range(50)]
        for number, connection in enumerate(connections):
            connection.sendall(f"{number}\n".encode())
        for number, connection in enumerate(connections):
            assert connection.recv(100) == f"{number}\n".encode()
            connection.close()


def test_the_end_at_the_device_is_the_end_here(server: StubServer, forwards: Forwards, told: list[str]) -> None:
    async def say_goodbye(connection: ServerConnection) -> None:
        await connection.send(b"bye")

    server.handler = say_goodbye
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        assert read_all(connection) == b"bye"
    assert told == []


def test_a_refusal_is_told_and_resets_the_connection(server: StubServer, forwards: Forwards, told: list[str]) -> None:
    server.refusal = (HTTPStatus.BAD_GATEWAY, "r1 refuses connections to port 22")
    with forwards.open("r1", 22) as forward:
        expect_reset(forward)
    assert told == ["r1:22: GET /lab/devices/r1/tcp/22: 502: r1 refuses connections to port 22"]


def test_the_end_of_the_lab_is_told_and_resets_the_connection(
    server: StubServer, forwards: Forwards, told: list[str]
) -> None:
    async def end(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(4410, "the lab was torn down")

    server.handler = end
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert told == ["r1:22: the lab was torn down"]


def test_a_server_that_is_away_is_told(server: StubServer, told: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        access = Access(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with Forwards(WebSockets(access, "0123", 5), told.append) as forwards, forwards.open("r1", 22) as forward:
            expect_reset(forward)
    assert "refused" in told[0].lower() or "Connect call failed" in told[0]


def test_a_device_that_does_not_read_stops_the_sender(server: StubServer, forwards: Forwards) -> None:
    server.handler = server.swallow
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        sent = send_until_nobody_reads(connection)
        assert sent < 32 << 20
        server.go_on()
        wait_until(lambda: server.received >= sent)


def test_a_reader_that_does_not_read_stops_the_device(server: StubServer, forwards: Forwards) -> None:
    server.handler = server.pour
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        connection.recv(1)
        before = -1
        while before != server.received:
            before = server.received
            threading.Event().wait(0.5)
        assert server.received < 32 << 20


def test_the_end_of_a_forward_closes_its_connections(forwards: Forwards) -> None:
    with forwards.open("r1", 22) as forward:
        connection = socket.create_connection((forward.host, forward.port))
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    with connection, pytest.raises(ConnectionResetError):
        read_all(connection)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((forward.host, forward.port))
    forward.close()


def test_a_port_of_this_machine_can_be_chosen(forwards: Forwards) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with forwards.open("r1", 22, local_port=port) as forward:
        assert forward.port == port
        with pytest.raises(OSError, match="in use"):
            forwards.open("r1", 22, local_port=port)


def test_a_local_reset_closes_the_connection_to_the_device(server: StubServer, forwards: Forwards) -> None:
    ended = threading.Event()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        ended.set()

    server.handler = wait
    with forwards.open("r1", 22) as forward:
        connection = socket.create_connection((forward.host, forward.port))
        connection.sendall(b"x")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        assert ended.wait(10)
