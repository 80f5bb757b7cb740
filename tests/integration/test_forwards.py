"""Forwarded ports, with a stub server and with programs of this machine as devices."""

from __future__ import annotations

import base64
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import trustme
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
def reports() -> list[str]:
    return []


@pytest.fixture
def forwards(server: StubServer, reports: list[str]) -> Iterator[Forwards]:
    access = Access(server.url, Credentials("secret"))
    with Forwards(WebSockets(access, "0123456789abcdef", 5), reports.append) as forwards:
        yield forwards


def read_all(connection: socket.socket) -> bytes:
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def expect_reset(forward: Forward) -> None:
    """Connect, and expect that the connection is reset."""
    with socket.create_connection((forward.host, forward.port)) as connection, pytest.raises(ConnectionResetError):
        read_all(connection)


def send_until_blocked(connection: socket.socket) -> int:
    """Send until the socket has accepted nothing for half a second. Returns the number of bytes sent."""
    connection.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += connection.send(bytes(1 << 16))
    return sent


def test_bytes_pass_unchanged_in_both_directions(server: StubServer, forwards: Forwards) -> None:
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


def test_a_forward_serves_many_connections_at_once(forwards: Forwards) -> None:
    with forwards.open("r1", 22) as forward:
        connections = [socket.create_connection((forward.host, forward.port)) for _ in range(50)]
        for number, connection in enumerate(connections):
            connection.sendall(f"{number}\n".encode())
        for number, connection in enumerate(connections):
            assert connection.recv(100) == f"{number}\n".encode()
            connection.close()


def test_a_connection_that_the_device_closes_is_closed_locally(
    server: StubServer, forwards: Forwards, reports: list[str]
) -> None:
    async def send_and_close(connection: ServerConnection) -> None:
        await connection.send(b"bye")

    server.handler = send_and_close
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        assert read_all(connection) == b"bye"
    assert reports == []


def test_a_refusal_is_reported_and_resets_the_connection(
    server: StubServer, forwards: Forwards, reports: list[str]
) -> None:
    server.refusal = (HTTPStatus.BAD_GATEWAY, "r1 refuses connections to port 22")
    with forwards.open("r1", 22) as forward:
        expect_reset(forward)
    assert reports == ["r1:22: GET /lab/devices/r1/tcp/22: 502: r1 refuses connections to port 22"]


def test_the_end_of_the_lab_is_reported_and_resets_the_connection(
    server: StubServer, forwards: Forwards, reports: list[str]
) -> None:
    async def end(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(4410, "the lab was torn down")

    server.handler = end
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(connection)
    assert reports == ["r1:22: the lab was torn down"]


def test_an_unreachable_server_is_reported(server: StubServer, reports: list[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        access = Access(f"http://127.0.0.1:{unused.getsockname()[1]}")
        with Forwards(WebSockets(access, "0123", 5), reports.append) as forwards, forwards.open("r1", 22) as forward:
            expect_reset(forward)
    assert "refused" in reports[0].lower() or "Connect call failed" in reports[0]


def test_a_device_that_does_not_read_stops_the_sender(server: StubServer, forwards: Forwards) -> None:
    server.handler = server.read_later
    with forwards.open("r1", 22) as forward, socket.create_connection((forward.host, forward.port)) as connection:
        sent = send_until_blocked(connection)
        assert sent < 32 << 20
        server.resume()
        wait_until(lambda: server.received >= sent)


def test_a_reader_that_does_not_read_stops_the_device(server: StubServer, forwards: Forwards) -> None:
    server.handler = server.send_forever
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


# Certificates and proxies between client and server


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that connects its clients to any address, and records their requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Tunnel)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Tunnel(socketserver.BaseRequestHandler):
    server: Proxy
    request: socket.socket

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.request.recv(1)
        self.server.heads.append(head)
        host, port = head.split()[1].decode().split(":")
        with socket.create_connection((host, int(port))) as target:
            self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            back = threading.Thread(target=self.copy, args=(target, self.request))
            back.start()
            self.copy(self.request, target)
            back.join()

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[StubServer]:
    """A server with TLS that requires a certificate of its clients."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(tls)
    tls.verify_mode = ssl.CERT_REQUIRED
    server = StubServer(tls)
    yield server
    server.close()


@pytest.fixture
def credentials(authority: trustme.CA, tmp_path: Path) -> Credentials:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("ann@office").private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    return Credentials(client_cert=tmp_path / "client.pem", ca_file=tmp_path / "ca.pem")


def is_echoed(access: Access) -> bool:
    """Whether a device that is reached with this access sends data back."""
    with (
        Forwards(WebSockets(access, "0123", 5)) as forwards,
        forwards.open("r1", 22) as forward,
        socket.create_connection((forward.host, forward.port)) as connection,
    ):
        connection.sendall(b"data")
        return connection.recv(100) == b"data"


def test_certificates_of_both_sides_are_checked(
    secure: StubServer, credentials: Credentials, reports: list[str]
) -> None:
    assert is_echoed(Access(secure.url, credentials))
    without_certificate = Access(secure.url, Credentials(ca_file=credentials.ca_file))
    without_authority = Access(secure.url, Credentials(client_cert=credentials.client_cert))
    for access in (without_certificate, without_authority):
        with Forwards(WebSockets(access, "0123", 5), reports.append) as forwards, forwards.open("r1", 22) as forward:
            expect_reset(forward)
    assert "a client certificate may be missing" in reports[0] or "closed without a response" in reports[0]
    assert "its certificate is not accepted" in reports[1]


def test_a_password_in_the_address_is_sent(server: StubServer) -> None:
    assert is_echoed(Access(server.url.replace("//", "//ann:s%40cret@")))
    (request,) = server.requests
    assert request.headers["Authorization"] == f"Basic {base64.b64encode(b'ann:s@cret').decode()}"


@pytest.mark.parametrize("tls", [False, True])
def test_a_proxy_is_used_with_its_credentials(
    request: pytest.FixtureRequest, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, credentials: Credentials, tls: bool
) -> None:
    server: StubServer = request.getfixturevalue("secure" if tls else "server")
    monkeypatch.setenv("HTTPS_PROXY" if tls else "HTTP_PROXY", f"http://ann:s%40cret@{proxy.address}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert is_echoed(Access(server.url, credentials))
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {server.url.partition('//')[2]} ".encode())
    assert base64.b64encode(b"ann:s@cret") in head


def test_a_redirect_is_not_followed(server: StubServer, forwards: Forwards, reports: list[str]) -> None:
    server.refusal = (HTTPStatus.FOUND, "elsewhere")
    with forwards.open("r1", 22) as forward:
        expect_reset(forward)
    assert "302" in reports[0]
    assert len(server.requests) == 1
