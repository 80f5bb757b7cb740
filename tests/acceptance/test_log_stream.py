"""`GET /lab/log`: netlab's output as text and as a live stream."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server


def test_a_log_is_streamed_from_its_beginning_to_the_end_of_the_lab(lab_server: LabServer) -> None:
    session = lab_server.join()
    headers = {"Accept": "text/event-stream"}
    with lab_server.client(session) as client, lab_server.client(session) as other:
        files = {"topology": ("lab.yml", topology_text(2, start_seconds=0.5))}
        assert client.post("/lab", files=files, headers={"Prefer": "respond-async"}).status_code == 202
        seen: list[str] = []
        with client.stream("GET", "/lab/log", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                seen.append(line)
                if line == "data: OK: Lab devices configured":
                    assert other.delete("/lab").status_code == 202
        assert seen[0] == "data: Creating configuration files"
        assert "event: end" in seen
        assert seen.index("data: OK: Lab devices configured") < seen.index("event: end")


def test_the_log_is_available_as_text_without_directories_of_the_host(lab_server: LabServer) -> None:
    session = lab_server.join()
    assert lab_server.acquire(session, topology_text(1)).status_code == 200
    with lab_server.client(session) as client:
        answer = client.get("/lab/log")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "Starting clab nodes" in answer.text
    assert str(lab_server.root) not in answer.text


STREAM = {"Accept": "text/event-stream"}


def with_lab(server: LabServer) -> tuple[str, Path]:
    """Start a lab. Returns its session and the file of its log."""
    session = server.join()
    assert server.acquire(session, topology_text(1)).status_code == 200
    (log,) = server.work_dir.glob("*/netlab.log")
    return session, log


def append(log: Path, data: bytes) -> None:
    """Append to a log, as netlab does."""
    with log.open("ab") as file:
        file.write(data)


def until(lines: Iterator[str], wanted: str) -> list[str]:
    """Read a stream up to and including a line."""
    seen = []
    for line in lines:
        seen.append(line)
        if line == wanted:
            return seen
    raise AssertionError(f"the stream ended without {wanted!r}: {seen[-5:]}")


def read(server: LabServer, session: str, last_id: str, wanted: str) -> tuple[list[str], list[str]]:
    """Open a stream after an event, and read up to a line. Returns the lines and the event ids."""
    headers = STREAM | {"Last-Event-ID": last_id}
    with server.client(session) as client, client.stream("GET", "/lab/log", headers=headers) as stream:
        seen = until(stream.iter_lines(), f"data: {wanted}")
    lines = [line.removeprefix("data: ") for line in seen if line.startswith("data: ")]
    return lines, [line.removeprefix("id: ") for line in seen if line.startswith("id: ")]


def test_a_stream_continues_after_the_last_event_even_of_a_restarted_server(lab_server: LabServer) -> None:
    session, log = with_lab(lab_server)
    append(log, b"one\nTraceback (most recent call last):\n  hidden\ntwo\nthree\n")
    lines, ids = read(lab_server, session, "", "three")
    assert len(set(ids)) == len(lines)
    assert read(lab_server, session, ids[-3], "three") == (["two", "three"], ids[-2:])
    lab_server.kill()
    lab_server.start()
    append(log, b"four\n")
    assert read(lab_server, session, ids[-3], "four")[0] == ["two", "three", "four"]
    assert read(lab_server, session, f"another-{ids[-1].rpartition('-')[2]}", "four")[0] == [*lines, "four"]


def test_a_line_of_netlab_cannot_forge_an_event(lab_server: LabServer) -> None:
    ends = ["\r", "\r\r", "\x0b", "\x0c", "\x85", "\u2028", "\x00"]
    session, log = with_lab(lab_server)
    lines = [f"{end}event: end{end}id: 7{end}retry: 1{end}data: forged{end}{end}data: too" for end in ends]
    append(log, "\n".join(["begin", *lines, "last\n"]).encode())
    with lab_server.client(session) as client, client.stream("GET", "/lab/log", headers=STREAM) as stream:
        text = ""
        for piece in stream.iter_text():
            text += piece
            if "data: last" in text:
                break
    (between,) = re.findall(r"data: begin\n\n(.*)\n\ndata: last\n\n", text, re.DOTALL)
    assert not re.search(r"[^\n\x20-\x7e]", between)
    events = between.split("\n\n")
    assert len(events) == len(ends)
    assert all(line.startswith("data: ") for event in events for line in event.split("\n"))


def test_a_traceback_that_is_printed_in_pieces_is_hidden(lab_server: LabServer) -> None:
    session, log = with_lab(lab_server)
    with lab_server.client(session) as client, client.stream("GET", "/lab/log", headers=STREAM) as stream:
        lines = stream.iter_lines()
        append(log, b'before\nTraceback (most recent call last):\n  File "/usr/lib/secret.py", line 1, in run\n')
        seen = until(lines, "data: before")
        # the stream has read past the head of the traceback
        append(log, b"    secret(1)\n\nValueError: cause\nafter\n")
        seen += until(lines, "data: after")
    assert "data: ValueError: cause" in seen
    assert not [line for line in seen if "secret" in line or "Traceback" in line]


def test_an_unfinished_last_line_is_shown(lab_server: LabServer) -> None:
    session, log = with_lab(lab_server)
    append(log, b"Password: ")
    with lab_server.client(session) as client, lab_server.client(session) as other:
        assert client.get("/lab/log").text.endswith("\nPassword: \n")
        with client.stream("GET", "/lab/log", headers=STREAM) as stream:
            lines = stream.iter_lines()
            until(lines, "data: OK: Lab devices configured")
            assert other.delete("/lab").status_code == 202
            assert any(line.startswith("data: Password: ") for line in until(lines, "event: end"))


def test_only_the_end_of_a_long_log_is_shown(tmp_path: Path) -> None:
    with running_server(tmp_path, log_backlog_bytes="1000") as server:
        session, log = with_lab(server)
        append(log, b"".join(b"line %d\n" % number for number in range(100_000)))
        with server.client(session) as client:
            shown = client.get("/lab/log").text.splitlines()
            with client.stream("GET", "/lab/log", headers=STREAM) as stream:
                streamed = until(stream.iter_lines(), "data: line 99999")
    assert shown[-1] == "line 99999"
    assert 900 < len("".join(f"{line}\n" for line in shown)) <= 1000
    assert [line.removeprefix("data: ") for line in streamed if line] == shown


def test_a_slow_reader_is_told_that_it_fell_behind(tmp_path: Path) -> None:
    with running_server(tmp_path, log_backlog_bytes="100000") as server:
        session, log = with_lab(server)
        with closing(socket.socket()) as slow, server.client(session) as client:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", server.port))
            slow.settimeout(30)
            request = (
                f"GET /lab/log HTTP/1.1\r\nHost: x\r\nX-Session-ID: {session}\r\nAccept: text/event-stream\r\n\r\n"
            )
            slow.sendall(request.encode())
            received = slow.recv(100)
            with client.stream("GET", "/lab/log", headers=STREAM) as stream:
                lines = stream.iter_lines()
                for turn in range(8):  # more than the buffers of the sockets can take
                    append(log, (b"x" * 9000 + b"\n") * 250 + b"turn %d\n" % turn)
                    until(lines, f"data: turn {turn}")
            while b"event: end" not in received[-500:]:
                piece = slow.recv(1 << 16)
                assert piece, received[-500:]
                received += piece
    assert b"too slow" in received[-500:]
    assert b"data: turn 7" not in received


@pytest.mark.parametrize(
    ("settings", "code"), [({"max_session_log_readers": "2"}, 429), ({"max_log_readers": "2"}, 503)], ids=str
)
def test_the_number_of_readers_is_limited(tmp_path: Path, settings: dict[str, str], code: int) -> None:
    with running_server(tmp_path, **settings) as server:
        session, _ = with_lab(server)
        with server.client(session) as one, server.client(session) as other, server.client(session) as third:
            with one.stream("GET", "/lab/log", headers=STREAM), other.stream("GET", "/lab/log", headers=STREAM):
                for headers in ({}, STREAM):
                    refused = third.get("/lab/log", headers=headers)
                    assert refused.status_code == code
                    assert int(refused.headers["Retry-After"]) > 0
            wait_until(lambda: third.get("/lab/log").status_code == 200)
