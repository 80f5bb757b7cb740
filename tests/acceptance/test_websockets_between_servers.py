"""WebSockets to devices of another host: the server that was called passes them on to the server of that host."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from pathlib import Path

import httpx
import psutil
import pytest
import trustme
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.chaos.shell import sql
from tests.device_network import ECHO, needs_network, nodes_that_answer, topology
from tests.fakes import install_fake_netlab, wait_until
from tests.hops import active_elsewhere
from tests.server import LabServer, free_port, running_server
from tests.stub_server import StubServer
from tests.websocket import open_websocket

SESSION = "active-elsewhere"
CONSOLE = "/lab/devices/r1/console"
LIMIT = 1 << 20
"""Bytes of the largest message that a server accepts."""
MEMORY = 16 << 20
"""Maximum growth of the memory of a server, in bytes."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """The server that clients call."""
    with running_server(tmp_path_factory.mktemp("front"), lab_host="front") as server:
        yield server


@pytest.fixture
def owner() -> Iterator[StubServer]:
    """A stub server, whose WebSockets a test controls."""
    with closing(StubServer()) as server:
        yield server


@pytest.fixture
def url(front: LabServer, owner: StubServer) -> Iterator[str]:
    """The address of a console on the server that passes the call on."""
    with active_elsewhere(front, SESSION, owner.url):
        yield f"ws://127.0.0.1:{front.port}{CONSOLE}"


def opened(url: str) -> ClientConnection:
    return open_websocket(url, X_Session_ID=SESSION)


def closed(connection: ClientConnection) -> tuple[int | None, str | None]:
    """Read to the end. Returns the close code and the reason."""
    with suppress(ConnectionClosed):
        while True:
            connection.recv(10)
    return connection.close_code, connection.close_reason


def test_messages_arrive_unchanged_in_both_directions(url: str) -> None:
    with opened(url) as connection:
        for message in ("", b"", "täxt", b"\x00\xff", os.urandom(LIMIT), "x" * LIMIT):
            connection.send(message)
            assert connection.recv(10) == message


def test_a_message_in_fragments_arrives_as_one(url: str) -> None:
    with opened(url) as connection:
        connection.send(iter([b"one", b"two", b"three"]))
        assert connection.recv(10) == b"onetwothree"


def test_path_query_and_headers_arrive(url: str, owner: StubServer) -> None:
    headers = {"X-Session-ID": SESSION, "Authorization": "Bearer secret"}
    with connect(f"{url}?command=a%20b&rows=3", additional_headers=headers):
        pass
    (request,) = owner.requests
    assert request.path == f"{CONSOLE}?command=a%20b&rows=3"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["X-Session-ID"] == SESSION
    assert request.headers["Via"] == "1.1 neops-remote-lab"
    assert request.headers["Host"] == owner.url.removeprefix("http://")
    assert len(request.headers.get_all("User-Agent")) == 1
    assert "Sec-WebSocket-Extensions" not in request.headers


def test_the_owner_chooses_the_subprotocol(front: LabServer) -> None:
    offered = [Subprotocol("first"), Subprotocol("second")]
    with closing(StubServer(subprotocols=["second", "third"])) as owner, active_elsewhere(front, SESSION, owner.url):
        url, headers = f"ws://127.0.0.1:{front.port}{CONSOLE}", {"X-Session-ID": SESSION}
        with connect(url, additional_headers=headers, subprotocols=offered) as connection:
            assert connection.subprotocol == "second"


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1013, "later"), (4410, "the lab has ended")])
def test_the_client_gets_the_code_of_the_owner(url: str, owner: StubServer, code: int, reason: str) -> None:
    async def end(connection: ServerConnection) -> None:
        await connection.send(b"the last")
        await connection.close(code, reason)

    owner.handler = end
    with opened(url) as connection:
        assert connection.recv(10) == b"the last"
        assert closed(connection) == (code, reason)


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "bye"), (4000, "done")])
def test_the_owner_gets_the_code_of_the_client(url: str, owner: StubServer, code: int, reason: str) -> None:
    ends = ends_of(owner)
    with opened(url) as connection:
        connection.send(b"the first")
        connection.close(code, reason)
    wait_until(lambda: ends)
    assert ends == [(code, reason)]


def ends_of(owner: StubServer) -> list[tuple[int | None, str | None]]:
    """A list that gets the close codes and reasons of the owner's connections."""
    ends: list[tuple[int | None, str | None]] = []

    async def echo(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await owner.echo(connection)
        await connection.wait_closed()
        ends.append((connection.close_code, connection.close_reason))

    owner.handler = echo
    return ends


def test_the_owner_notices_that_the_client_has_vanished(url: str, owner: StubServer) -> None:
    ends = ends_of(owner)
    connection = opened(url)
    connection.send(b"x")
    assert connection.recv(10) == b"x"
    connection.socket.close()
    wait_until(lambda: ends)


def test_the_client_notices_that_the_owner_has_vanished(url: str, owner: StubServer) -> None:
    async def vanish(connection: ServerConnection) -> None:
        connection.transport.abort()

    owner.handler = vanish
    with opened(url) as connection:
        code, reason = closed(connection)
    assert code == 1014
    assert reason == "the connection to the server of the session's host broke"


def test_a_message_beyond_the_limit_is_refused(url: str, owner: StubServer) -> None:
    ends = ends_of(owner)
    with opened(url) as connection:
        connection.send(bytes(LIMIT + 1))
        assert closed(connection)[0] == 1009
    wait_until(lambda: ends)
    assert ends[0][0] == 1009


def test_an_owner_that_does_not_read_stops_the_client(front: LabServer, url: str, owner: StubServer) -> None:
    owner.handler = owner.read_later
    memory, sent = Growth(front), 0

    def send() -> None:
        nonlocal sent
        for _ in range(1000):
            connection.send(bytes(1 << 16))
            sent += 1 << 16

    with opened(url) as connection:
        sender = threading.Thread(target=send)
        sender.start()
        until_still(lambda: sent)
        assert sent < 64_000_000
        assert memory.grown() < MEMORY
        owner.resume()
        sender.join(30)
        wait_until(lambda: owner.received == 1000 << 16)
    assert memory.grown() < MEMORY


def test_a_client_that_does_not_read_stops_the_owner(front: LabServer, url: str, owner: StubServer) -> None:
    owner.handler = owner.send_forever
    memory = Growth(front)
    with opened(url) as connection:
        until_still(lambda: owner.received)
        assert memory.grown() < MEMORY
        stopped = owner.received
        for _ in range(1 + stopped // (1 << 16)):
            connection.recv(10)
        wait_until(lambda: owner.received > stopped)
        connection.close_timeout = 0.1  # the owner never stops
    assert memory.grown() < MEMORY


class Growth:
    """The growth of the memory of a server, in bytes."""

    def __init__(self, server: LabServer) -> None:
        assert server.process
        self._process = psutil.Process(server.process.pid)
        self._before = self._process.memory_info().rss

    def grown(self) -> int:
        return int(self._process.memory_info().rss) - self._before


def until_still(number: Callable[[], int]) -> None:
    """Wait until a number stops growing."""
    seen, since = number(), time.monotonic()

    def is_still() -> bool:
        nonlocal seen, since
        if number() != seen:
            seen, since = number(), time.monotonic()
        return bool(seen) and time.monotonic() - since > 0.5

    wait_until(is_still, 30)


def test_the_certificate_of_the_owner_is_verified(front: LabServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusting = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"), {"lab-host": "front"})
    trusting.environment["SSL_CERT_FILE"] = str(tmp_path / "ca.pem")
    with closing(StubServer(tls)) as owner, closing(trusting):
        trusting.start()
        with active_elsewhere(trusting, SESSION, owner.url), trusting.client(SESSION) as client:
            assert client.get("/lab/devices").json() == [{"name": "r1", "raw": {}}]
            with opened(f"ws://127.0.0.1:{trusting.port}{CONSOLE}") as connection:
                connection.send(b"x")
                assert connection.recv(10) == b"x"
        with active_elsewhere(front, SESSION, owner.url), front.client(SESSION) as client:
            assert client.get("/lab/devices").status_code == 503
            assert refusal(f"ws://127.0.0.1:{front.port}{CONSOLE}")[0] == 503


def refusal(url: str) -> tuple[int, dict[str, str], str]:
    with pytest.raises(InvalidStatus) as refused:
        opened(url)
    response = refused.value.response
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, dict(response.headers), str(json.loads(bytes(response.body or b""))["detail"])


def test_a_refusal_is_passed_back(url: str, owner: StubServer) -> None:
    owner.refusal = HTTPStatus.BAD_GATEWAY, "the device refuses the connection"
    status, _, detail = refusal(url)
    assert (status, detail) == (502, "the device refuses the connection")


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "lab-2:8000"])
def test_a_websocket_to_an_unreachable_owner_is_refused(front: LabServer, address: str) -> None:
    with active_elsewhere(front, SESSION, address.format(port=free_port())):
        status, headers, detail = refusal(f"ws://127.0.0.1:{front.port}{CONSOLE}")
    assert status == 503
    assert headers["retry-after"] == "2"
    assert "cannot be reached" in detail


def test_websockets_of_a_host_that_is_declared_silent_end(front: LabServer, url: str, owner: StubServer) -> None:
    owner.handler = owner.read_later
    with opened(url) as connection:
        connection.send(b"x")
        sql(front.database, "UPDATE lab_host SET state = 'silent' WHERE address = ?", owner.url)
        assert closed(connection) == (1014, "the server of the session's host shows no sign of life")
    status, headers, detail = refusal(url)
    assert (status, headers["retry-after"]) == (503, "2")
    assert "shows no sign of life" in detail


def test_a_client_that_leaves_before_the_owner_accepts_leaves_the_owner(front: LabServer) -> None:
    """As when a device takes long to accept a connection."""
    with closing(socket.create_server(("127.0.0.1", 0))) as owner:  # noqa: SIM117 - it needs the address
        with active_elsewhere(front, SESSION, f"http://127.0.0.1:{owner.getsockname()[1]}"):
            url, headers = f"ws://127.0.0.1:{front.port}{CONSOLE}", {"X-Session-ID": SESSION}
            with pytest.raises(TimeoutError), connect(url, additional_headers=headers, open_timeout=0.5):
                pass
            with closing(owner.accept()[0]) as peer:
                peer.settimeout(5)
                while peer.recv(4096):
                    pass


def test_websockets_are_closed_when_the_server_shuts_down(
    owner: StubServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ends = ends_of(owner)
    with (
        running_server(tmp_path_factory.mktemp("front"), lab_host="front") as front,
        active_elsewhere(front, SESSION, owner.url),
    ):
        with opened(f"ws://127.0.0.1:{front.port}{CONSOLE}") as connection:
            connection.send(b"x")
            assert connection.recv(10) == b"x"
            assert front.stop() == 0
            assert closed(connection)[0] == 1012
        wait_until(lambda: ends)
        front.start()


@needs_network
def test_a_device_of_another_host_is_reached(front: LabServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_server(tmp_path_factory.mktemp("owner")) as owner:
        session = owner.join()
        with active_elsewhere(front, session, owner.url):
            assert front.acquire(session, topology(1)).status_code == 200
            with nodes_that_answer(owner.fake):
                base, sent = f"ws://127.0.0.1:{front.port}/lab/devices/r1/tcp", os.urandom(1_000_000)
                with open_websocket(f"{base}/{ECHO}", X_Session_ID=session) as connection:
                    connection.send(sent)
                    received = b""
                    while len(received) < len(sent):
                        piece = connection.recv(10)
                        assert isinstance(piece, bytes)
                        received += piece
                    assert received == sent
                with open_websocket(f"{base}/{ECHO}", X_Session_ID=session) as connection:
                    assert httpx.delete(f"{owner.url}/lab", headers={"X-Session-ID": session}).status_code == 202
                    assert closed(connection)[0] == 4410
        httpx.delete(f"{owner.url}/session/{session}")
        wait_until(owner.is_clean, 20)
