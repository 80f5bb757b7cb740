"""The worst stall of the event loop: the longest status call while clients misbehave."""

import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.corpora import UPLOADS
from tests.fakes import topology_text

from bench import host, load
from bench.measure import BenchError, Row, Sample, Target, require
from bench.probe import probing
from bench.servers import NEVER, Bench, Server, call, end, form, joined

LIMIT: Final = 100.0
"""Maximum milliseconds of a stall."""
ANSWER_TIMEOUT: Final = 30.0
END_OF_STREAM: Final = 1.0
"""Seconds without data after which a stream counts as read."""
ANSWERED = re.compile(rb"HTTP/1\.1 (\d+)")


def measure(bench: Bench) -> list[Row]:
    """Measure the longest status call during each kind of load, minus the longest one of the idle server."""
    fake = host.install(bench.directory("host"), start_seconds=0.1)
    with bench.ours(fake, waiting_timeout=NEVER, active_timeout=NEVER, send_timeout="2") as server, ExitStack() as ends:
        holder, waiting = joined(server), joined(server)
        body, content_type = form(topology_text(1))
        call(server, "POST", "/lab", 200, holder, body=body, content_type=content_type)
        (log,) = Path(server.work_dir).glob("*/netlab.log")
        probe = ends.enter_context(probing(server.port, waiting))
        loads: dict[str, Callable[[], str]] = {
            f"{len(UPLOADS)} refused uploads": lambda: _upload_all(server, waiting),
            "20 clients read none of 2000 answers": lambda: _read_nothing(server, waiting, 20, 2000),
            "a log of 30 MB, 8 readers": lambda: _read_log(server, holder, log, b"x" * 79 + b"\n", 30_000_000),
            "a line of 48 MB, 8 readers": lambda: _read_log(server, holder, log, b"x", 48_000_000),
            "2000 polls of a session that ends": lambda: _end_polls(server, 2000),
            "5000 streams of a log": lambda: _open_streams(server, holder, 5000),
            "1000 waiting sessions move up": lambda: _move_up(server, 1000),
        }
        rows = []
        for case, work in loads.items():
            idle, _ = probe.during(lambda: time.sleep(1))
            worst, note = probe.during(work)
            stall = Sample([1000 * max(0.0, worst - idle)])
            target = Target(ceiling=LIMIT)
            rows.append(Row("stall", case, "ms", stall, "idle", Sample([1000 * idle]), target, note=note))
        return rows


def _request(method: str, path: str, session: str, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Session-ID: {session}".encode(), *headers]
    lines += [b"Content-Length: %d" % len(body)] if body else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _connect(server: Server, *, small: bool = False) -> socket.socket:
    connection = socket.socket()
    if small:  # a small receive buffer, so that the server notices that its responses are not read
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(ANSWER_TIMEOUT)
    connection.connect(("127.0.0.1", server.port))
    return connection


def _status(connection: socket.socket) -> int:
    if (found := ANSWERED.match(connection.recv(1 << 16))) is None:
        raise BenchError("a connection was closed without an answer")
    return int(found[1])


def _upload_all(server: Server, session: str) -> str:
    for upload in UPLOADS:
        kind = b"Content-Type: " + upload.content_type()
        with _connect(server) as connection:
            try:
                connection.sendall(
                    _request("POST", "/topology/check", session, kind, b"Connection: close", body=upload.body())
                )
                status = _status(connection)
            except ConnectionError:
                continue  # the refusal came before the end of the upload
        require(400 <= status < 500, f"{upload.name}: {status}")
    return ""


def _read_nothing(server: Server, session: str, clients: int, answers: int) -> str:
    with ExitStack() as open_:
        for _ in range(clients):
            connection = open_.enter_context(_connect(server, small=True))
            connection.setblocking(False)  # send only what the socket accepts at once
            sent = _request("GET", "/openapi.json", session) * answers
            try:
                connection.send(sent)
            except BlockingIOError:
                continue
        time.sleep(2)
    return ""


def _read_log(server: Server, session: str, log: Path, piece: bytes, size: int) -> str:
    with log.open("ab") as file:
        file.write(piece * (size // len(piece)))
    with ExitStack() as open_:
        connections = [open_.enter_context(_connect(server)) for _ in range(8)]
        for number, connection in enumerate(connections):
            accept = b"Accept: " + (b"text/event-stream" if number % 2 else b"text/plain")
            connection.sendall(_request("GET", "/lab/log", session, accept))
        received = [_drain(connection) for connection in connections]
    require(min(received), "a reader received nothing")
    return f"{sum(received) / 1e6:.0f} MB read"


def _drain(connection: socket.socket) -> int:
    """Read until no data arrives for a while. Returns the number of bytes."""
    received = 0
    try:
        while piece := connection.recv(1 << 18):
            received += len(piece)
            connection.settimeout(END_OF_STREAM)
    except (TimeoutError, ConnectionError):  # the stream stays open, or reading the others took too long
        pass
    return received


def _hold(server: Server, sessions: Sequence[str], open_: ExitStack) -> list[socket.socket]:
    connections = [open_.enter_context(_connect(server)) for _ in sessions]
    for session, connection in zip(sessions, connections, strict=True):
        connection.sendall(_request("GET", f"/session/{session}?wait=60", session))
        time.sleep(0.0005)  # spread the requests, because only their end is measured
    return connections


def _end_polls(server: Server, count: int) -> str:
    session = joined(server)
    with ExitStack() as open_:
        connections = _hold(server, [session] * count, open_)
        end(server, session)
        statuses = {_status(connection) for connection in connections}
    require(statuses == {404}, f"the polls of an ended session were answered {statuses}")
    return ""


def _move_up(server: Server, count: int) -> str:
    first = joined(server)
    sessions = load.run(lambda: load.join(server.port, count, 20), 60)[2]
    with ExitStack() as open_:
        connections = _hold(server, sessions, open_)
        end(server, first)
        require(_status(connections[0]) == 200, "a poll was not answered when its position had changed")
        time.sleep(1)
    return ""


def _open_streams(server: Server, session: str, count: int) -> str:
    statuses: dict[int, int] = {}
    with ExitStack() as open_:
        for _ in range(0, count, 50):
            connections = [open_.enter_context(_connect(server, small=True)) for _ in range(50)]
            for connection in connections:
                connection.sendall(_request("GET", "/lab/log", session, b"Accept: text/event-stream"))
            for connection in connections:
                status = _status(connection)
                statuses[status] = statuses.get(status, 0) + 1
        time.sleep(1)
    require(statuses.keys() <= {200, 429, 503}, f"streams were answered {statuses}")
    return ", ".join(f"{times} times {status}" for status, times in sorted(statuses.items()))
