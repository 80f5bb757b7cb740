"""Requests that a proxy could interpret differently, for each HTTP parser that may be installed."""

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.api.framing import MAX_HEAD_BYTES
from neops_remote_lab.api.settings import HttpSettings
from tests.server import LabServer, running_server

GET = b"GET /healthz HTTP/1.1\r\n"
POST = b"POST /session HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"purpose": "p"}'
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
SHAKE = UPGRADE + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
SMUGGLED = b"GET /debug/health HTTP/1.1\r\nHost: x\r\n\r\n"

REFUSED = {
    "length and coding": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding in a line of its own": POST
    + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice in a line": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "not quite chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /session HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two hosts": GET + b"Host: x\r\nHost: y\r\n\r\n",
    "the same host twice": GET + b"Host: x\r\nHost: x\r\n\r\n",
    "no host": GET + b"\r\n",
    "a host that is none": GET + b"Host: x y\r\n\r\n",
    "two hosts in a line": GET + b"Host: x/y@z\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/0.9 by name": b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "HTTP/1.10": b"GET /healthz HTTP/1.10\r\nHost: x\r\n\r\n",
    "http/1.1": b"GET /healthz http/1.1\r\nHost: x\r\n\r\n",
    "another protocol": b"GET /healthz RTSP/1.0\r\nHost: x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 16\r\nContent-Length: 5\r\n\r\n" + BODY,
    "two lengths in a line": POST + b"Content-Length: 16, 5\r\n\r\n" + BODY,
    "the same length twice": POST + b"Content-Length: 16\r\nContent-Length: 16\r\n\r\n" + BODY,
    "a signed length": POST + b"Content-Length: +16\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -16\r\n\r\n" + BODY,
    "a hexadecimal length": POST + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a length with an underscore": POST + b"Content-Length: 1_6\r\n\r\n" + BODY,
    "an empty length": POST + b"Content-Length:\r\n\r\n" + BODY,
    "an endless length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "a folded header": GET + b"Host: x\r\nX-A: b\r\n c\r\n\r\n",
    "a folded header with a tab": GET + b"Host: x\r\nX-A: b\r\n\tc\r\n\r\n",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a first header that is folded": GET + b" Host: x\r\n\r\n",
    "a bare CR": GET + b"Host: x\r\nX-A: b\rTransfer-Encoding: chunked\r\n\r\n",
    "a bare CR in the request line": b"GET /healthz\rX HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bare LF": GET + b"Host: x\nX-A: b\r\n\r\n",
    "bare LFs alone": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "a head that ends with a bare LF": GET + b"Host: x\r\n\n",
    "a space before the colon": GET + b"Host: x\r\nX-A : b\r\n\r\n",
    "a space before the colon of a coding": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "no colon": GET + b"Host: x\r\nX-A\r\n\r\n",
    "no name": GET + b"Host: x\r\n: b\r\n\r\n",
    "NUL in a name": GET + b"Host: x\r\nX\x00A: b\r\n\r\n",
    "NUL in a value": GET + b"Host: x\r\nX-A: b\x00c\r\n\r\n",
    "a name that is not ASCII": GET + b"Host: x\r\nX-\xc4: b\r\n\r\n",
    "two spaces in the request line": b"GET  /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tab in the request line": b"GET\t/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the path": b"GET /health z HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is not ASCII": b"GET /health\xe4 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a control character in the path": b"GET /health\x01z HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is none": b"G(T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"xyz\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-1\r\n\r\n",
    "a signed chunk size": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a prefix": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "an endless chunk size": CHUNKED + b"f" * 40 + b"\r\n",
    "a chunk that is longer than its size": CHUNKED + b"1\r\n{}\r\n0\r\n\r\n",
    "a WebSocket with a body": GET + SHAKE + b"Content-Length: 5\r\n\r\n12345",
    "a WebSocket with chunks": GET + SHAKE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a WebSocket by POST": b"POST /session HTTP/1.1\r\n" + SHAKE + b"\r\n",
    "a WebSocket in HTTP/1.0": b"GET /healthz HTTP/1.0\r\n" + SHAKE + b"\r\n",
    "a WebSocket or something else": GET + SHAKE + b"Upgrade: h2c\r\n\r\n",
    "something else or a WebSocket": GET + b"Upgrade: h2c\r\n" + SHAKE + b"\r\n",
    "a WebSocket in a list": GET + SHAKE.replace(b": websocket", b": h2c, WebSocket") + b"\r\n",
    "a WebSocket without a key": GET + UPGRADE + b"\r\n",
    "a WebSocket with another key": GET + UPGRADE + b"Sec-WebSocket-Key: x\r\n\r\n",
}
"""Requests that are refused with 400, after which the connection is closed."""

ACCEPTED = {
    "HTTP/1.1": (GET + b"Host: x\r\n\r\n", 204),
    "an empty host": (GET + b"Host:\r\n\r\n", 204),
    "a host with a port": (GET + b"Host: [::1]:8000\r\n\r\n", 204),
    "no space after the colon": (GET + b"Host:x\r\nX-A:b\r\n\r\n", 204),
    "many spaces after the colon": (GET + b"Host:   x  \r\nX-A:\t b \r\n\r\n", 204),
    "a value in Latin-1": (GET + b"Host: x\r\nX-A: \xe4\r\n\r\n", 204),
    "a line break before the request": (b"\r\n" + GET + b"Host: x\r\n\r\n", 204),
    "a body": (POST + b"Content-Length: 16\r\n\r\n" + BODY, 201),
    "an upgrade that nobody offers": (GET + b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 204),
}
"""Requests after which the connection stays open."""

LAST = {
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", 204),
    "a client that wants no other": (GET + b"Host: x\r\nConnection: close\r\n\r\n", 204),
    "chunks": (CHUNKED + b"10\r\n" + BODY + b"\r\n0\r\n\r\n", 201),
    "chunks of any case": (POST + b"transfer-encoding: Chunked\r\n\r\n10\r\n" + BODY + b"\r\n0\r\n\r\n", 201),
    "a chunk extension": (CHUNKED + b"10;a=b\r\n" + BODY + b"\r\n0;c\r\n\r\n", 201),
    "a WebSocket that there is not": (GET + SHAKE + b"\r\n", 403),
    "trailers": (CHUNKED + b"10\r\n" + BODY + b"\r\n0\r\nX-A: b\r\n\r\n", 201),
}
"""Requests after which the server closes the connection."""


@pytest.fixture(scope="module", params=["h11", "httptools"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    if request.param == "httptools":
        pytest.importorskip("httptools")
    with running_server(tmp_path_factory.mktemp("server"), http_parser=request.param) as running:
        yield running


def conversation(server: LabServer, *sent: bytes) -> tuple[list[int], bool]:
    """The status of each answer, and whether the server closed the connection by itself."""
    received = b""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as connection:
        for part in sent:
            connection.sendall(part)
        closed = False
        try:
            while not closed and not _is_whole(received):
                piece = connection.recv(1 << 16)
                received, closed = received + piece, not piece
            if not closed:
                # the connection is open if it answers another request
                connection.sendall(b"DELETE /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                piece = connection.recv(1 << 16)
                closed = not piece or b"405" not in piece
        except ConnectionError:
            closed = True
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]], closed


def _is_whole(received: bytes) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or b"0") and b"connection: close" not in head.lower()


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_ambiguous_requests_are_refused(server: LabServer, sent: bytes) -> None:
    assert conversation(server, sent) == ([400], True)


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_no_request_is_smuggled_behind_an_ambiguous_one(server: LabServer, sent: bytes) -> None:
    assert conversation(server, sent + SMUGGLED) == ([400], True)


def test_ambiguous_requests_that_arrive_byte_by_byte_are_refused(server: LabServer) -> None:
    for sent in (REFUSED["a folded header"], REFUSED["length and coding"], REFUSED["bare LFs alone"]):
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            received = b""
            try:
                for byte in sent:
                    connection.sendall(bytes([byte]))
                while piece := connection.recv(1 << 16):
                    received += piece
            except ConnectionError:
                pass
        assert received[9:12] in (b"400", b"")  # a reset may arrive before the response


@pytest.mark.parametrize(("sent", "code"), ACCEPTED.values(), ids=ACCEPTED)
def test_unambiguous_requests_are_answered(server: LabServer, sent: bytes, code: int) -> None:
    codes, closed = conversation(server, sent)
    assert codes == [code]
    assert not closed


@pytest.mark.parametrize(("sent", "code"), LAST.values(), ids=LAST)
def test_a_request_that_is_the_last_of_its_connection(server: LabServer, sent: bytes, code: int) -> None:
    assert conversation(server, sent + SMUGGLED) == ([code], True)


def test_a_head_that_is_too_large_is_refused(server: LabServer) -> None:
    assert conversation(server, GET + b"Host: x\r\nX-A: " + b"b" * MAX_HEAD_BYTES) == ([431], True)


@pytest.mark.parametrize("more", [b"X-A: " + b"b" * 9000 + b"\r\n", b"X-A: b\r\n" * 200], ids=["long", "many"])
def test_a_websocket_with_too_many_headers_is_refused(server: LabServer, more: bytes) -> None:
    """Older versions of the library close the connection without a response."""
    assert conversation(server, GET + SHAKE + more + b"\r\n" + SMUGGLED) in (([431], True), ([], True))


def all_answers(server: LabServer, sent: bytes) -> list[int]:
    """The status of each answer, up to the end of the connection."""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_pipelined_requests_are_answered_in_order(server: LabServer) -> None:
    call = POST + b"Content-Length: 16\r\n\r\n" + BODY
    sent = (call + GET + b"Host: x\r\n\r\n") * 20 + GET + b"Host: x\r\nConnection: close\r\n\r\n"
    assert all_answers(server, sent) == [201, 204] * 20 + [204]


def test_a_refusal_waits_for_the_response_to_an_earlier_request(server: LabServer) -> None:
    assert all_answers(server, POST + b"Content-Length: 16\r\n\r\n" + BODY + GET + b"\r\n") == [201, 400]


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_client_that_does_not_read_responses_is_disconnected(tmp_path: Path, parser: str) -> None:
    if parser == "httptools":
        pytest.importorskip("httptools")
    with running_server(tmp_path, http_parser=parser, send_timeout="0.2") as server, closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.settimeout(60)
        with pytest.raises(ConnectionError):
            _send_for_ever(client, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    with running_server(tmp_path, keep_alive="1") as server:
        assert all_answers(server, GET + b"Host: x\r\n\r\n") == [204]


def test_clients_and_proxies_close_an_idle_connection_before_the_server_does() -> None:
    nginx = 60  # seconds, by default
    assert HttpSettings().keep_alive > max(nginx, httpx.Limits().keepalive_expiry or 0)


def _send_for_ever(client: socket.socket, data: bytes) -> None:
    while True:
        client.sendall(data)
