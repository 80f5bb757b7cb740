"""TCP connections to devices through a WebSocket: transfer, refusals and closing."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.device_network import (
    ECHO,
    GREETING,
    LATE,
    NOTHING,
    RESET,
    SINK,
    SOURCE,
    address,
    needs_network,
    nodes_that_answer,
    topology,
)
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server
from tests.websocket import open_websocket

pytestmark = needs_network
CUT_WITHIN = 2.0
"""Maximum seconds until a connection has ended."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server"), connect_timeout="0.5") as running:
        yield running


@pytest.fixture
def session(server: LabServer) -> Iterator[str]:
    """The active session, with a lab of two routers, of which only the first one has services."""
    session = server.join()
    assert server.acquire(session, topology(2)).status_code == 200
    with nodes_that_answer(server.fake):
        yield session
    httpx.delete(f"{server.url}/session/{session}")
    wait_until(server.is_clean, 20, "the lab is not torn down")


def open_connection(server: LabServer, session: str, node: str = "r1", port: int | str = ECHO) -> ClientConnection:
    url = f"ws://127.0.0.1:{server.port}/lab/devices/{node}/tcp/{port}"
    return open_websocket(url, X_Session_ID=session)


def refusal(server: LabServer, session: str, node: str = "r1", port: int | str = ECHO) -> tuple[int, str]:
    """Open a connection that is refused. Returns the status and the message."""
    with pytest.raises(InvalidStatus) as refused:
        open_connection(server, session, node, port)
    response = refused.value.response
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return response.status_code, str(json.loads(bytes(response.body))["detail"])


def closed(connection: ClientConnection, timeout: float = 10) -> tuple[int, str]:
    """Read to the end. Returns the close code and the reason of the server."""
    deadline = time.monotonic() + timeout
    with suppress(ConnectionClosed):
        while True:
            connection.recv(max(0.0, deadline - time.monotonic()))
    assert connection.close_code is not None
    return connection.close_code, connection.close_reason or ""


def echo(connection: ClientConnection, sent: bytes, piece_bytes: int) -> bytes:
    """Send data to a port that echoes, and read at the same time. Returns what was read."""

    def send() -> None:
        for start in range(0, len(sent), piece_bytes):
            connection.send(sent[start : start + piece_bytes])

    sender = threading.Thread(target=send)
    sender.start()
    received = b""
    while len(received) < len(sent):
        piece = connection.recv(10)
        assert isinstance(piece, bytes)
        received += piece
    sender.join()
    return received


def test_bytes_pass_unchanged_in_both_directions(server: LabServer, session: str) -> None:
    sent = os.urandom(5_000_000)
    with open_connection(server, session) as connection:
        received = echo(connection, sent, 100_000)
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def test_the_end_of_the_stream_is_a_normal_close_after_all_bytes(server: LabServer, session: str) -> None:
    with open_connection(server, session, port=GREETING) as connection:
        assert connection.recv(10) == b"hello"
        assert closed(connection) == (1000, "")


def test_a_reset_by_the_device_differs_from_a_normal_close(server: LabServer, session: str) -> None:
    with open_connection(server, session, port=RESET) as connection:
        assert connection.recv(10) == b"hello"
        assert closed(connection) == (1014, "the connection to the device broke: Connection reset by peer")


def test_an_empty_message_closes_the_direction_to_the_device(server: LabServer, session: str) -> None:
    with open_connection(server, session, port=LATE) as connection:
        connection.send(b"all")
        connection.send(b"")
        assert connection.recv(10) == b"heard all"
        assert closed(connection) == (1000, "")


def test_a_device_sees_that_a_client_has_disconnected(server: LabServer, session: str) -> None:
    before = established(server)
    connection = open_connection(server, session)
    assert established(server) == before + 1
    connection.close()
    wait_until(lambda: established(server) == before, 5, "the connection to the device stays")
    connection = open_connection(server, session)
    connection.socket.close()  # without a closing handshake
    wait_until(lambda: established(server) == before, 5, "the connection to the device stays")


def established(server: LabServer) -> int:
    """The server's connections to the devices."""
    assert server.process
    process = psutil.Process(server.process.pid)
    return sum(
        bool(found.raddr) and found.raddr.ip == address(1) for found in process.net_connections("tcp") if found.status
    )


def shake(session: str, port: int) -> bytes:
    """The bytes of a request for a WebSocket to a port of a node."""
    return (
        f"GET /lab/devices/r1/tcp/{port} HTTP/1.1\r\nHost: x\r\nX-Session-ID: {session}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def test_data_sent_before_the_response_to_the_upgrade_is_kept(server: LabServer, session: str) -> None:
    masked = b"\x82\x85\0\0\0\0early"
    for parts in ((shake(session, ECHO) + masked,), (shake(session, ECHO), masked[:3], masked[3:])):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in parts:
                peer.sendall(part)
            received = b""
            while not received.endswith(b"early"):
                piece = peer.recv(1000)
                assert piece
                received += piece
            assert received.endswith(b"\r\n\r\n\x82\x05early")


def test_many_connections_are_open_at_once(server: LabServer, session: str) -> None:
    with ExitStack() as ends:
        connections = [ends.enter_context(open_connection(server, session)) for _ in range(60)]
        for number, connection in enumerate(connections):
            connection.send(f"{number}".encode())
        assert [connection.recv(10) for connection in connections] == [f"{number}".encode() for number in range(60)]


# Refusals


def test_an_invalid_port_or_an_unknown_node_is_refused_before_the_upgrade(server: LabServer, session: str) -> None:
    assert refusal(server, session, port=NOTHING) == (502, f"r1, TCP port {NOTHING}: connection refused")
    assert refusal(server, session, "r2") == (504, f"r2 did not answer on TCP port {ECHO} within 0.5 s")
    for name in ("r9", "127.0.0.1", "localhost", address(1), "..", "r1%00"):
        assert refusal(server, session, name)[0] in {403, 404}, name
    for port in ("0", "65536", "-1", "7.0", "7a", "99999999999999"):
        assert refusal(server, session, port=port)[0] == 422, port


def test_a_session_without_a_lab_is_refused_before_the_upgrade(server: LabServer, session: str) -> None:
    other = server.join()
    assert refusal(server, other)[0] == 423
    assert refusal(server, "unknown")[0] == 404
    assert refusal(server, "")[0] == 422
    with server.client(session) as client:
        client.delete("/lab")
    assert "no lab is running" in refusal(server, session)[1]
    httpx.delete(f"{server.url}/session/{other}")


def test_a_request_without_an_upgrade_is_refused(server: LabServer, session: str) -> None:
    with server.client(session) as client:
        answer = client.get(f"/lab/devices/r1/tcp/{ECHO}")
        assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")
        assert "Upgrade: websocket" in answer.json()["detail"]
        assert client.post(f"/lab/devices/r1/tcp/{ECHO}").status_code == 405


def test_a_websocket_elsewhere_is_refused(server: LabServer, session: str) -> None:
    for path in ("/lab", "/lab/log", "/healthz", "/nothing"):
        with pytest.raises(InvalidStatus) as refused:
            open_websocket(f"ws://127.0.0.1:{server.port}{path}", X_Session_ID=session)
        assert refused.value.response.status_code == 403


@pytest.fixture
def host_listener() -> Iterator[int]:
    """A port of this host with a listener on all addresses."""
    with closing(socket.create_server(("", 0))) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield int(listener.getsockname()[1])
        assert accepted == [], "something of this host was reached"
        listener.shutdown(socket.SHUT_RDWR)


def change_container(server: LabServer, node: str, change: Callable[[dict[str, object]], None]) -> Callable[[], object]:
    """Change the fake Docker's data about a node's container. Returns a function that undoes it."""
    (path,) = (path for path in server.fake.state.glob("containers/*.json") if f'-{node}"' in path.read_text())
    before = path.read_text()
    known = json.loads(before)
    change(known)
    path.write_text(json.dumps(known))
    return lambda: path.write_text(before)


ELSEWHERE = {"loopback": "127.0.0.1", "another loopback": "127.9.9.9", "this host": "", "metadata": "169.254.169.254"}


@pytest.mark.parametrize("claimed", ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_address_is_used_only_in_the_network_of_the_lab(
    server: LabServer, session: str, host_listener: int, claimed: str
) -> None:
    """This holds even if Docker reports the address, because a network may have a subnet of the host."""
    change_container(server, "r2", lambda known: known.update(ipv4=claimed or address(0)))
    assert refusal(server, session, "r2", host_listener)[0] in {501, 502, 504}


def test_an_address_claimed_by_a_topology_is_ignored(tmp_path: Path, host_listener: int) -> None:
    claims = "provider: clab\ndefaults.device: frr\nnodes:\n  r1: {mgmt: {ipv4: 127.0.0.1}}\n"
    with running_server(tmp_path, connect_timeout="0.5") as server:
        session = server.join()
        assert server.acquire(session, claims).status_code == 200
        change_container(server, "r1", lambda known: known.update(ipv4=address(1)))
        with nodes_that_answer(server.fake), open_connection(server, session) as connection:
            connection.send(b"x")
            assert connection.recv(10) == b"x"
            assert refusal(server, session, port=host_listener)[0] == 502


def test_a_node_in_the_hosts_network_is_501(server: LabServer, session: str, host_listener: int) -> None:
    change_container(server, "r2", lambda known: known.update(network="host"))
    status, detail = refusal(server, session, "r2", host_listener)
    assert (status, "r2 has no address in a network created by Docker" in detail) == (501, True)


@pytest.mark.parametrize(
    "change",
    [{"driver": "macvlan"}, {"options": {"com.docker.network.bridge.name": "br0"}}],
    ids=["macvlan", "a bridge that somebody has made"],
)
def test_a_network_to_which_others_may_be_attached_is_501(
    server: LabServer, session: str, change: dict[str, object]
) -> None:
    (path,) = server.fake.state.glob("networks/[!.]*")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert refusal(server, session)[0] == 501


def test_a_host_without_the_bridge_of_the_lab_is_501(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        status, detail = refusal(server, session)
        assert (status, detail) == (
            501,
            "the management network of r1 cannot be reached from this host: no such device",
        )


def test_a_node_of_another_provider_is_501(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        session = server.join()
        assert server.acquire(session, topology_text(1, "external")).status_code == 200
        assert refusal(server, session)[0] == 501


def test_a_container_of_another_lab_is_501(server: LabServer, session: str) -> None:
    def move(known: dict[str, object]) -> None:
        labels = known["labels"]
        assert isinstance(labels, dict)
        labels["clab-topo-file"] = f"{server.work_dir}-of-others/lab/clab.yml"

    ours = change_container(server, "r1", move)
    assert refusal(server, session)[0] == 501
    ours()


# Ends of connections


def end_session(server: LabServer, session: str) -> None:
    httpx.delete(f"{server.url}/session/{session}")


def release(server: LabServer, session: str) -> None:
    with server.client(session) as client:
        assert client.post("/lab/release").status_code == 204


def destroy(server: LabServer, session: str) -> None:
    with server.client(session) as client:
        assert client.delete("/lab").status_code == 202


def end_by_sql(server: LabServer, _session: str) -> None:
    with closing(sqlite3.connect(server.database)) as database, database:
        database.execute("UPDATE session SET state = 'ended', ended_at = CURRENT_TIMESTAMP")


ENDS = {
    "the last reference is released": release,
    "the lab is destroyed": destroy,
    "the session ends": end_session,
    "an operator ends the session": end_by_sql,
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_connections_are_closed_when_the_lab_or_the_session_ends(
    server: LabServer, session: str, end: Callable[[LabServer, str], None]
) -> None:
    idle, busy = open_connection(server, session), open_connection(server, session, port=SOURCE)
    deaf = open_connection(server, session, port=SOURCE)  # this connection is not read
    assert busy.recv(10)
    end(server, session)
    began = time.monotonic()
    assert closed(idle, CUT_WITHIN) == (4410, "the lab or its session has ended")
    assert closed(busy, CUT_WITHIN)[0] == 4410
    wait_until(lambda: established(server) == 0, CUT_WITHIN, "a connection to a device stays")
    assert time.monotonic() - began < CUT_WITHIN
    deaf.socket.close()


def test_connections_stay_open_while_a_reference_is_left(server: LabServer, session: str) -> None:
    assert server.acquire(session, topology(2)).json()["reused"]
    with open_connection(server, session) as connection:
        release(server, session)
        connection.send(b"still here")
        assert connection.recv(10) == b"still here"
        release(server, session)
        assert closed(connection, CUT_WITHIN)[0] == 4410


@pytest.mark.parametrize("on_exit", ["teardown", "keep"])
def test_connections_are_closed_when_the_server_drains(tmp_path: Path, on_exit: str) -> None:
    with running_server(tmp_path, on_exit=on_exit) as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake):
            connection, deaf = open_connection(server, session), open_connection(server, session, port=SOURCE)
            began = time.monotonic()
            with ThreadPoolExecutor(1) as pool:
                stopping = pool.submit(server.stop)
                assert closed(connection, CUT_WITHIN)[0] == 1012
                assert time.monotonic() - began < CUT_WITHIN
                assert stopping.result(30) == 0
            deaf.socket.close()
        if on_exit == "keep":
            server.start()
            destroy(server, session)
            wait_until(server.is_clean, 20, "the lab is not torn down")


# Limits


def test_connections_beyond_the_limits_are_closed_at_once_and_do_not_count(tmp_path: Path) -> None:
    with running_server(tmp_path, max_session_connections="2") as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake):
            first, second = open_connection(server, session), open_connection(server, session)
            third = open_connection(server, session)
            assert closed(third) == (1013, "the session has 2 connections to its devices already")
            first.close()
            wait_until(lambda: established(server) == 1, 5)
            fourth = open_connection(server, session)
            fourth.send(b"x")
            assert fourth.recv(10) == b"x"
            second.close()
            fourth.close()


def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    with running_server(tmp_path, connection_idle_timeout="1") as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake):
            quiet, busy = open_connection(server, session), open_connection(server, session)
            for _ in range(6):
                time.sleep(0.3)
                busy.send(b"x")
                assert busy.recv(10) == b"x"
            assert closed(quiet) == (4408, "no data was sent for 1 s")
            assert closed(busy)[0] == 4408


def test_invalid_messages_end_the_connection(tmp_path: Path) -> None:
    with running_server(tmp_path, max_message_bytes="1000") as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake):
            connection = open_connection(server, session)
            connection.send("text")
            assert closed(connection) == (1003, "messages must be binary")
            connection = open_connection(server, session)
            connection.send(b"x" * 1001)
            assert closed(connection)[0] == 1009
            wait_until(lambda: established(server) == 0, 5, "a connection to the device stays")


def memory(server: LabServer) -> int:
    assert server.process
    return int(psutil.Process(server.process.pid).memory_info().rss)


def test_a_client_that_does_not_read_stops_the_sender_on_the_device(server: LabServer, session: str) -> None:
    before = memory(server)
    connections = [open_connection(server, session, port=SOURCE) for _ in range(5)]
    time.sleep(2)
    assert memory(server) - before < 20 << 20
    assert server.status(session)["status"] == "active"  # the event loop is not blocked
    for connection in connections:
        assert connection.recv(10)
        connection.socket.close()


def test_a_device_that_does_not_read_stops_the_sending_client(server: LabServer, session: str) -> None:
    before, sent = memory(server), 0
    connection = open_connection(server, session, port=SINK)
    connection.socket.settimeout(1)
    with suppress(OSError, ConnectionClosed):
        while sent < 200 << 20:
            connection.send(b"x" * 100_000)
            sent += 100_000
    assert sent < 40 << 20
    assert memory(server) - before < 20 << 20
    connection.socket.close()


def test_the_teardown_does_not_wait_for_a_connection_of_a_lost_client(tmp_path: Path) -> None:
    """The client answers no ping, as a machine that was switched off."""
    with running_server(tmp_path, send_timeout="1", active_timeout="1") as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake), closing(socket.create_connection(("127.0.0.1", server.port))) as peer:
            peer.sendall(shake(session, ECHO))
            assert peer.recv(1000).startswith(b"HTTP/1.1 101 ")
            wait_until(lambda: established(server) == 0, 15, "the connection to the device stays")
            wait_until(server.is_clean, 20, "it holds the lab")  # a status call would renew the session
            assert httpx.get(f"{server.url}/session/{session}").status_code == 410


def test_a_device_that_does_not_read_does_not_disconnect_its_client(tmp_path: Path) -> None:
    with running_server(tmp_path, send_timeout="1", active_timeout="1") as server:
        session = server.join()
        assert server.acquire(session, topology(1)).status_code == 200
        with nodes_that_answer(server.fake):
            connection = open_connection(server, session, port=SINK)
            flooding = threading.Thread(target=flood, args=(connection,), daemon=True)
            flooding.start()
            time.sleep(4)
            assert established(server) == 1
            assert server.status(session)["status"] == "active"  # an open connection is a call that is open
            connection.socket.shutdown(socket.SHUT_RDWR)
            flooding.join(10)


def flood(connection: ClientConnection) -> None:
    with suppress(OSError, ConnectionClosed):
        while True:
            connection.send(b"x" * 100_000)
