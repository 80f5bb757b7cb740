"""Calls on a lab of another host: the server that was called passes them on to the server of that host."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from neops_remote_lab.client import RemoteLabClient
from tests.artifacts import unpack
from tests.chaos.shell import sql
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.hops import active_elsewhere
from tests.plugin import queue
from tests.postgresql import Cluster
from tests.server import LabServer, free_port, running_server

TOPOLOGY = topology_text(1)
STREAM = {"Accept": "text/event-stream"}
CONNECT_TIMEOUT = 1.0
MEMORY = 8 << 20
"""Maximum growth of the memory of a server, in bytes."""
OWN_HEADERS = {"connection", "date", "server"}


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("owner"), max_session_log_readers="1") as server:
        yield server


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """The server that clients call."""
    root = tmp_path_factory.mktemp("front")
    with running_server(root, lab_host="front", proxy_connect_timeout=str(CONNECT_TIMEOUT)) as server:
        yield server


@pytest.fixture
def session(owner: LabServer, front: LabServer) -> Iterator[str]:
    """A session that is active on the host of the owner."""
    joined = owner.join()
    with active_elsewhere(front, joined, owner.url):
        yield joined
    httpx.delete(f"{owner.url}/session/{joined}")
    owner.fake.control()
    wait_until(owner.is_clean, 20, "the lab is not torn down")


def both(front: LabServer, owner: LabServer, session: str, *call: Any, **more: Any) -> tuple[Any, Any]:
    """Responses to a call of the server that passes it on, and of the owner."""
    answers = []
    for server in (front, owner):
        with server.client(session) as client:
            answer = client.request(*call, **more)
        headers = [(name, value) for name, value in answer.headers.multi_items() if name not in OWN_HEADERS]
        assert len(answer.headers.get_list("date")) == len(answer.headers.get_list("server")) == 1
        answers.append((answer.status_code, sorted(headers), answer.content))
    return answers[0], answers[1]


@pytest.mark.parametrize(
    "call",
    [
        (200, "GET", "/lab", {}),
        (200, "HEAD", "/lab", {}),
        (405, "PUT", "/lab", {}),
        (404, "GET", "/lab/devices", {}),
        (204, "DELETE", "/lab", {}),
        (422, "DELETE", "/lab?force=perhaps", {}),
        (422, "POST", "/lab", {"content": b"no form"}),
        (400, "POST", "/lab", {"files": {"topology": ("topology.txt", TOPOLOGY)}}),
        (413, "POST", "/lab", {"files": {"topology": ("topology.yml", bytes(30_000_000))}}),
        (422, "POST", "/lab/devices/r1/exec", {"json": {"command": []}}),
        (426, "GET", "/lab/devices/r1/console", {}),
        (404, "GET", "/lab/nothing", {}),
    ],
)
def test_an_answer_is_the_same_as_that_of_the_owner(
    front: LabServer, owner: LabServer, session: str, call: tuple[int, str, str, dict[str, Any]]
) -> None:
    status, method, path, more = call
    passed_on, direct = both(front, owner, session, method, path, **more)
    assert passed_on == direct
    assert direct[0] == status


def test_a_refusal_says_when_to_retry(front: LabServer, owner: LabServer, session: str) -> None:
    waiting = owner.join()
    with active_elsewhere(front, waiting, owner.url):  # in the owner's database, the session still waits
        passed_on, direct = both(front, owner, waiting, "GET", "/lab")
    httpx.delete(f"{owner.url}/session/{waiting}")
    assert passed_on == direct
    assert direct[0] == 423
    assert "retry-after" in dict(direct[1])


def test_a_lab_is_used_through_another_server(front: LabServer, owner: LabServer, session: str) -> None:
    assert front.acquire(session, TOPOLOGY).json()["reused"] is False
    passed_on, direct = both(front, owner, session, "GET", "/lab/devices")
    assert passed_on == direct
    with front.client(session) as client, owner.client(session) as other:
        assert unpack(client.get("/lab/artifacts")).keys() >= {"devices.json", "netlab.log"}
        assert client.get("/lab/log").text == other.get("/lab/log").text
        assert client.post("/lab/release").status_code == 204
    assert front.fake.invocations("up") == []


def test_a_large_upload_is_not_kept_in_memory(front: LabServer, owner: LabServer, session: str) -> None:
    with front.client(session) as client:
        assert client.get("/lab").status_code == 200  # imports what is needed
    process = psutil.Process(front.process.pid if front.process else None)
    before = process.memory_info().rss
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # resets the peak of memory
    extra = os.urandom(30_000_000)
    files: list[tuple[str, tuple[str, str | bytes]]] = [
        ("topology", ("topology.yml", TOPOLOGY)),
        ("extra_files", ("extra.bin", extra)),
    ]
    with front.client(session) as client:
        assert client.post("/lab", files=files).status_code == 200
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    assert peak - before < MEMORY
    (arrived,) = owner.work_dir.glob("*/**/extra.bin")
    assert arrived.read_bytes() == extra


def test_an_upload_in_chunks_arrives(front: LabServer, owner: LabServer, session: str) -> None:
    form = httpx.Request("POST", front.url, files={"topology": ("topology.yml", TOPOLOGY)})
    body = form.read()
    chunks = (body[place : place + 10] for place in range(0, len(body), 10))
    with front.client(session) as client:
        answer = client.post("/lab", content=chunks, headers={"Content-Type": form.headers["Content-Type"]})
    assert answer.status_code == 200


def test_events_arrive_as_they_are_written_and_the_owner_notices_who_leaves(
    front: LabServer, owner: LabServer, session: str
) -> None:
    assert front.acquire(session, TOPOLOGY).status_code == 200
    (log,) = owner.work_dir.glob("*/netlab.log")
    with front.client(session) as client, owner.client(session) as other:
        with client.stream("GET", "/lab/log", headers=STREAM) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "data: Creating configuration files"
            for number in range(3):
                with log.open("a") as file:
                    file.write(f"line {number}\n")
                while next(lines) != f"data: line {number}":
                    pass
            assert other.get("/lab/log").status_code == 429  # one reader per session
        wait_until(lambda: other.get("/lab/log").status_code == 200)


def test_a_client_that_leaves_an_acquire_leaves_the_owner_too(front: LabServer, owner: LabServer, session: str) -> None:
    slow = topology_text(1, start_seconds=3)
    with front.client(session) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/lab", files={"topology": ("topology.yml", slow)}, timeout=0.5)
    # `last_seen_seconds` is 0 during a call.
    wait_until(lambda: queue(owner)[0]["last_seen_seconds"] > 0, 2)
    assert front.acquire(session, slow).json()["reused"] is True


def test_an_unreachable_owner_is_reported_at_once(front: LabServer) -> None:
    with active_elsewhere(front, "down", f"http://127.0.0.1:{free_port()}"):
        unavailable(front, "down")


def test_an_owner_that_does_not_accept_connections_is_reported_after_the_timeout(front: LabServer) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, ExitStack() as ends:
        for _ in range(2):
            filling = ends.enter_context(closing(socket.socket()))
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        with active_elsewhere(front, "hangs", f"http://127.0.0.1:{full.getsockname()[1]}"):
            unavailable(front, "hangs")


def test_a_call_that_the_owner_does_not_answer_ends_with_its_session(front: LabServer) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as owner, ThreadPoolExecutor() as pool:
        with active_elsewhere(front, "ends", f"http://127.0.0.1:{owner.getsockname()[1]}"):
            acquire = pool.submit(front.acquire, "ends", TOPOLOGY)
            peer, _ = owner.accept()
            sql(front.database, "UPDATE session SET state = 'ended' WHERE session_id = 'ends'")
            with closing(peer):
                answer = acquire.result(CONNECT_TIMEOUT + 5)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "the session has left that host" in answer.json()["detail"]


def test_an_invalid_address_of_the_owner_is_reported(front: LabServer) -> None:
    with active_elsewhere(front, "nowhere", "lab-2:8000"):
        unavailable(front, "nowhere")


def unavailable(front: LabServer, session: str) -> None:
    began = time.monotonic()
    answer = front.acquire(session, TOPOLOGY)
    assert time.monotonic() - began < CONNECT_TIMEOUT + 2
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {"detail": "the server of the session's host cannot be reached: try again later"}


def test_calls_end_when_the_owner_is_killed(front: LabServer, tmp_path: Path) -> None:
    with running_server(tmp_path) as owner, ThreadPoolExecutor() as pool:
        session = owner.join()
        with active_elsewhere(front, session, owner.url), front.client(session) as client:
            assert front.acquire(session, TOPOLOGY).status_code == 200
            with client.stream("GET", "/lab/log", headers=STREAM) as stream:
                lines = stream.iter_lines()
                next(lines)
                owner.fake.control(hang="start")
                acquire = pool.submit(front.acquire, session, topology_text(2))
                wait_until(lambda: queue(owner)[0]["last_seen_seconds"] == 0)
                owner.kill()
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
            answer = acquire.result(10)
            assert answer.status_code in {423, 503}
            assert answer.headers["retry-after"] == "2"


def test_calls_that_are_passed_on_end_when_the_server_shuts_down(owner: LabServer, tmp_path: Path) -> None:
    with running_server(tmp_path, lab_host="front") as front, ThreadPoolExecutor() as pool:
        session = owner.join()
        with active_elsewhere(front, session, owner.url):
            owner.fake.control(hang="start")
            acquire = pool.submit(front.acquire, session, TOPOLOGY)
            wait_until(owner.fake.containers)
            with front.client(session) as client, client.stream("GET", "/lab/log", headers=STREAM) as stream:
                lines = stream.iter_lines()
                next(lines)
                began = time.monotonic()
                assert front.stop() == 0
                assert time.monotonic() - began < 4
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
            answer = acquire.result(10)
            assert answer.status_code == 503
            assert "shutting down" in answer.json()["detail"]
            front.start()
        owner.fake.control()
        httpx.delete(f"{owner.url}/session/{session}")
        wait_until(owner.is_clean, 20)


def test_a_call_is_passed_on_once(front: LabServer, tmp_path: Path) -> None:
    with (
        running_server(tmp_path, lab_host="second") as second,
        active_elsewhere(second, "lost", front.url),
        active_elsewhere(front, "lost", second.url),
        front.client("lost") as client,
    ):
        answer = client.get("/lab")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert "do not agree" in answer.json()["detail"]


def test_the_number_of_calls_that_are_passed_on_is_limited(owner: LabServer, tmp_path: Path) -> None:
    with running_server(tmp_path, lab_host="front", max_proxied_calls="1") as front:
        session = owner.join()
        with active_elsewhere(front, session, owner.url):
            assert front.acquire(session, TOPOLOGY).status_code == 200
            with front.client(session) as client, front.client(session) as other:
                with ExitStack() as streams:
                    # The acquire counts for a moment longer than its client waits.
                    follow = partial(client.stream, "GET", "/lab/log", headers=STREAM)
                    wait_until(lambda: streams.enter_context(follow()).status_code == 200)
                    answer = other.get("/lab")
                    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
                wait_until(lambda: other.get("/lab").status_code == 200)
        httpx.delete(f"{owner.url}/session/{session}")
        wait_until(owner.is_clean, 20)


def test_a_client_with_one_url_gets_the_lab_of_any_host(cluster: Cluster, tmp_path: Path) -> None:
    topology = tmp_path / "topology.yml"
    topology.write_text(TOPOLOGY)
    with cluster.new_database() as database, ExitStack() as ends:
        servers = []
        for name in ("lab-1", "lab-2"):
            server = LabServer(tmp_path / name, install_fake_netlab(tmp_path / name / "fake"))
            server.settings |= {"database": database, "lab-host": name, "advertise": server.url}
            ends.callback(server.close)
            server.start()
            servers.append(server)
        clients = [ends.enter_context(RemoteLabClient(servers[0].url)) for _ in servers]
        for client in clients:  # both sessions at the same time
            assert [device.name for device in client.acquire(topology)] == ["r1"]
        assert [len(server.fake.containers()) for server in servers] == [1, 1]
        for client in clients:
            client.release()
        wait_until(lambda: all(server.is_clean() for server in servers), 20)


class Recorder(BaseHTTPRequestHandler):
    """A handler that records the headers of requests."""

    protocol_version = "HTTP/1.1"
    heard: list[tuple[str, list[tuple[str, str]], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append((self.path, self.headers.items(), body))
        self.send_response(201)
        for name, value in (
            ("Set-Cookie", "one=1"),
            ("Set-Cookie", "two=2"),
            ("Keep-Alive", "timeout=5"),
            ("Connection", "X-This-Hop"),
            ("X-This-Hop", "1"),
            ("Content-Length", "2"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, list[tuple[str, str]], bytes]]]]:
    """The address of a server, and the requests that it gets."""
    heard: list[tuple[str, list[tuple[str, str]], bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneRecorder", (Recorder,), {"heard": heard}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()
    thread.join()


def test_headers_of_one_connection_stay_there_and_all_others_arrive(
    front: LabServer, recorder: tuple[str, list[tuple[str, list[tuple[str, str]], bytes]]]
) -> None:
    address, heard = recorder
    head = (
        "POST /lab/devices/../exec?a=%2F&b=%zz HTTP/1.1\r\nHost: asked.example\r\nX-Session-ID: heard\r\n"
        "Authorization: Bearer secret\r\nVia: 1.1 varnish\r\nTE: trailers\r\nKeep-Alive: timeout=9\r\n"
        "Proxy-Authorization: Basic eDp5\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nExpect: 100-continue\r\n"
        "Accept: a\r\nAccept: b\r\nX-Latin: \xe9\r\nContent-Length: 2\r\n\r\n{}"
    )
    with active_elsewhere(front, "heard", address), socket.create_connection(("127.0.0.1", front.port)) as peer:
        peer.sendall(head.encode("latin-1"))
        answer = b"".join(iter(lambda: peer.recv(4096), b"")).decode("latin-1").lower()
    ((path, headers, body),) = heard
    assert path == "/lab/devices/../exec?a=%2F&b=%zz"
    assert body == b"{}"
    assert sorted((name.lower(), value) for name, value in headers) == [
        ("accept", "a"),
        ("accept", "b"),
        ("authorization", "Bearer secret"),
        ("content-length", "2"),
        ("host", address.removeprefix("http://")),
        ("via", "1.1 neops-remote-lab"),
        ("via", "1.1 varnish"),
        ("x-latin", "é"),
        ("x-session-id", "heard"),
    ]
    assert "http/1.1 201" in answer
    assert answer.count("set-cookie: ") == 2
    assert "x-this-hop" not in answer
    assert "keep-alive" not in answer
