"""`RemoteLabClient` with a stub server, and a clock that only pauses advance."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from neops_remote_lab.client.connection import CLOSE_TIMEOUT, ServerConnection
from neops_remote_lab.client.exceptions import SessionClosed, SessionEnded
from neops_remote_lab.client.lab_client import RemoteLabClient, default_label
from neops_remote_lab.client.queue_position import LONGEST_POLL
from neops_remote_lab.core.client_settings import UNREACHABLE_TIMEOUT
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.models import DeviceInfoDto

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]

JOIN, POLL, END = "POST /session", "GET /session/s1", "DELETE /session/s1"
BEAT, CHECK = "POST /session/heartbeat", "POST /topology/check"
ACQUIRE, RELEASE, DESTROY = "POST /lab", "POST /lab/release", "DELETE /lab"
DEVICES = [{"name": "r1", "raw": {"ansible_user": "admin"}}]
CUT = httpx.ReadError("connection reset")


class PausedClock(Clock):
    """A clock that only `pause` advances: the client calls it between attempts, the stub server for slow responses."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds


class ScriptedServer:
    """Answers each call with the next answer of its script, and repeats the last one.

    The initial scripts are those of a host without other sessions.
    """

    def __init__(self, clock: PausedClock) -> None:
        self.clock = clock
        self.down_until = 0.0
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []
        self._scripts: dict[str, deque[Answer]] = {
            JOIN: deque([httpx.Response(201, json={"session_id": "s1", "position": 0})]),
            POLL: deque([active]),
            END: deque([httpx.Response(204)]),
            BEAT: deque([httpx.Response(204)]),
            ACQUIRE: deque([httpx.Response(200, json={"reused": False, "devices": DEVICES})]),
            RELEASE: deque([httpx.Response(204)]),
            DESTROY: deque([httpx.Response(202)]),
        }

    def script(self, call: str, *answers: Answer) -> None:
        self._scripts[call] = deque(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        self.times.append(self.clock.seconds)
        if self.clock.seconds < self.down_until:
            raise httpx.ConnectError("connection refused", request=request)
        script = self._scripts.get(name_of(request)) or deque([httpx.Response(404, json={"detail": "Not Found"})])
        answer = script.popleft() if len(script) > 1 else script[0]
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        if isinstance(answer, Exception):
            raise answer
        return answer(request)

    def scripted(self, call: str) -> Answer:
        return self._scripts[call][0]

    def of(self, call: str) -> list[httpx.Request]:
        return [request for request in self.requests if name_of(request) == call]

    def keys(self, call: str) -> list[str | None]:
        return [request.headers.get("Idempotency-Key") for request in self.of(call)]

    def moments(self, call: str) -> list[float]:
        """The times at which the call was received, in seconds since the start of the test."""
        return [
            time - 1000 for request, time in zip(self.requests, self.times, strict=True) if name_of(request) == call
        ]


def name_of(request: httpx.Request) -> str:
    return f"{request.method} {request.url.path}"


def active(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"status": "active", "position": 0, "eta_seconds": None, "waiting_for": None})


def waiting(position: int, waiting_for: str | None = None) -> httpx.Response:
    """An immediate answer, as a server without long polls sends it."""
    return httpx.Response(200, json={"status": "waiting", "position": position, "waiting_for": waiting_for})


def refusal(status: int, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": detail}, headers=headers)


@pytest.fixture
def clock() -> PausedClock:
    return PausedClock()


@pytest.fixture
def server(clock: PausedClock) -> ScriptedServer:
    return ScriptedServer(clock)


@pytest.fixture
def connect(server: ScriptedServer, clock: PausedClock) -> Callable[..., RemoteLabClient]:
    def connect(**options: Any) -> RemoteLabClient:
        transport = httpx.MockTransport(server)
        usual: dict[str, Any] = {"transport": transport, "clock": clock, "pause": clock.pause}
        url = options.pop("url", "http://lab")
        return RemoteLabClient(url, **usual | {"heartbeat_interval": 3600} | options)

    return connect


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "triangle.yml"
    path.write_text("nodes: [r1]\n")
    return path


Connect = Callable[..., RemoteLabClient]


# Joining


def test_joins_and_ends_one_session(server: ScriptedServer, connect: Connect) -> None:
    with connect() as client:
        assert client.session_id == "s1"
        assert not server.of(END)
    assert [name_of(request) for request in server.requests] == [JOIN, POLL, END]


def test_sends_labels_of_the_client_and_the_purpose(server: ScriptedServer, connect: Connect) -> None:
    connect(purpose="x" * 500).close()
    connect(client="ci", purpose="job 7").close()
    first, second = server.of(JOIN)
    assert default_label().encode() in first.content
    assert b"x" * 200 in first.content
    assert b"x" * 201 not in first.content
    assert second.content == b'{"client":"ci","purpose":"job 7"}'


def test_repeats_a_join_with_the_same_key(server: ScriptedServer, connect: Connect) -> None:
    joined = httpx.Response(201, json={"session_id": "s1", "position": 0})
    server.script(JOIN, CUT, refusal(503, "draining"), joined)
    connect().close()
    assert len(server.keys(JOIN)) == 3
    assert len(set(server.keys(JOIN))) == 1
    assert server.keys(JOIN)[0]


def test_joins_with_a_given_key(server: ScriptedServer, connect: Connect) -> None:
    connect(session_key="run-1").close()
    assert server.keys(JOIN) == ["run-1"]


def test_gives_up_on_an_address_that_never_answers(server: ScriptedServer, connect: Connect) -> None:
    server.script(JOIN, httpx.ConnectError("connection refused"))
    with pytest.raises(httpx.ConnectError, match="no answer from http://lab in 30 s: connection refused"):
        connect(session_timeout=600)


def test_reports_why_the_server_refuses_a_session(server: ScriptedServer, connect: Connect) -> None:
    server.script(JOIN, refusal(422, "purpose: too long"))
    with pytest.raises(httpx.HTTPStatusError, match="422: purpose: too long"):
        connect()


# Waiting


def test_waits_with_long_polls(server: ScriptedServer, connect: Connect, clock: PausedClock) -> None:
    def held(request: httpx.Request) -> httpx.Response:
        clock.pause(float(request.url.params["wait"]))
        return waiting(1)

    server.script(POLL, waiting(1), held, held, active)
    connect().close()
    waits = [int(request.url.params["wait"]) for request in server.of(POLL)]
    assert waits == [0, LONGEST_POLL - 1, LONGEST_POLL - 1, LONGEST_POLL - 1]  # 80 % of the request timeout
    assert server.moments(POLL) == [0, 0, 24, 48]


def test_polls_a_server_without_long_polls_once_a_second(server: ScriptedServer, connect: Connect) -> None:
    server.script(POLL, *[waiting(1)] * 5, active)
    connect().close()
    assert server.moments(POLL) == [0, 0, 1, 2, 3, 4]


def test_a_long_poll_is_shorter_than_the_request_timeout(server: ScriptedServer, connect: Connect) -> None:
    server.script(POLL, waiting(1), waiting(1), active)
    connect(request_timeout=5).close()
    assert [request.url.params["wait"] for request in server.of(POLL)] == ["0", "4", "4"]


def test_reports_each_change_of_the_position(server: ScriptedServer, connect: Connect) -> None:
    seen: list[tuple[int, str | None]] = []
    server.script(POLL, waiting(2, "ann holds the lab"), waiting(2, "ann holds the lab"), waiting(1, "bob"), active)
    connect(on_progress=lambda *change: seen.append(change)).close()
    assert seen == [(2, "ann holds the lab"), (1, "bob"), (0, None)]


def test_reports_each_response_with_the_estimated_wait(server: ScriptedServer, connect: Connect) -> None:
    def expected(seconds: float) -> httpx.Response:
        return httpx.Response(200, json={"status": "waiting", "position": 1, "eta_seconds": seconds})

    seen: list[float | None] = []
    server.script(POLL, expected(60), expected(30), active)
    connect(on_status=lambda status: seen.append(status.eta_seconds)).close()
    assert seen == [60, 30, None]


def test_polls_again_at_once_when_the_position_has_changed(
    server: ScriptedServer, connect: Connect, clock: PausedClock
) -> None:
    seen: list[int] = []
    server.script(POLL, *[waiting(position) for position in (3, 3, 2, 1)], active)
    connect(on_progress=lambda position, _: seen.append(position)).close()
    assert seen == [3, 2, 1, 0]
    assert [request.url.params.get("position") for request in server.of(POLL)] == [None, "3", "3", "2", "1"]
    assert server.moments(POLL) == [0, 0, 1, 1, 1]  # only the second answer had the same position


def test_reports_nothing_when_it_does_not_wait(connect: Connect) -> None:
    seen: list[tuple[int, str | None]] = []
    connect(on_progress=lambda *change: seen.append(change)).close()
    assert seen == []


def test_leaves_the_queue_after_the_session_timeout(server: ScriptedServer, connect: Connect) -> None:
    server.script(POLL, waiting(3, "ann holds the lab"))
    with pytest.raises(TimeoutError, match=r"not active within 20 s: position 3 in the queue \(ann holds the lab\)"):
        connect(session_timeout=20)
    assert server.moments(END) == [20]


def test_survives_a_restart_of_the_server_while_it_waits(
    server: ScriptedServer, connect: Connect, clock: PausedClock
) -> None:
    def goes_down(_: httpx.Request) -> httpx.Response:
        server.down_until = clock.seconds + 300
        raise CUT

    server.script(POLL, waiting(1), goes_down, refusal(502, "bad gateway"), active)
    connect(unreachable_timeout=400).close()
    assert server.moments(POLL)[-1] >= 300


def test_an_unreachable_server_does_not_prolong_the_wait(server: ScriptedServer, connect: Connect) -> None:
    server.script(POLL, waiting(1), refusal(503, "draining"))
    with pytest.raises(TimeoutError, match="not active within 30 s: draining"):
        connect(session_timeout=30)
    server.script(POLL, waiting(1), CUT)
    with pytest.raises(TimeoutError, match=r"not active within 30 s: no answer .*connection reset"):
        connect(session_timeout=30)


@pytest.mark.parametrize("status", [404, 410])
def test_reports_why_the_server_ended_a_waiting_session(server: ScriptedServer, connect: Connect, status: int) -> None:
    server.script(POLL, waiting(1), refusal(status, "ended by an operator"))
    with pytest.raises(RuntimeError, match="the session was ended by the server: ended by an operator"):
        connect()
    assert not server.of(END)


# Checking topologies while waiting


def test_checks_each_topology_once_while_it_waits(server: ScriptedServer, connect: Connect, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    for path in good, bad:
        path.write_text(path.stem)
    accepted = httpx.Response(200, json={"nodes": 1, "links": 0})
    server.script(POLL, *[waiting(1)] * 4, active)
    server.script(CHECK, accepted, refusal(422, "unknown attribute"))
    with connect(topologies=[good, bad]) as client:
        assert client.rejected == {bad: "unknown attribute"}
    assert [b'filename="good.yml"' in request.content for request in server.of(CHECK)] == [True, False]


def test_checks_a_topology_with_its_extra_files(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    topology.with_name("motd.j2").write_text("welcome")
    plain, whole, broken = (TopologyFiles.of(topology, files) for files in ([], ["motd.j2"], ["missing.j2"]))
    server.script(POLL, *[waiting(1)] * 4, active)
    server.script(CHECK, refusal(422, "no template motd"), httpx.Response(200, json={"nodes": 1, "links": 0}))
    with connect(topologies=[plain, broken, whole]) as client:
        assert client.rejected == {plain: "no template motd"}
    assert [b"welcome" in request.content for request in server.of(CHECK)] == [False, True]


def test_checks_nothing_if_the_session_is_active_at_once(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    connect(topologies=[topology]).close()
    assert not server.of(CHECK)


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_checks_is_asked_once(
    server: ScriptedServer, connect: Connect, topology: Path, status: int
) -> None:
    server.script(POLL, *[waiting(1)] * 4, active)
    server.script(CHECK, refusal(status, "no"))
    with connect(topologies=[topology, topology]) as client:
        assert client.rejected == {}
    assert len(server.of(CHECK)) == 1


def test_a_check_may_take_as_long_as_the_session_waits(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"]["read"])
        return refusal(422, "unknown attribute")

    limits: list[float] = []
    server.script(POLL, *[waiting(1)] * 4, active)
    server.script(CHECK, slow)
    with connect(topologies=[topology], session_timeout=500, request_timeout=3) as client:
        assert client.rejected == {topology: "unknown attribute"}
    assert limits == [500]


def test_an_active_session_does_not_wait_for_a_running_check(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    def busy(_: httpx.Request) -> httpx.Response:
        asked.set()
        granted.wait(30)
        return refusal(409, "the session is active now")

    def active_during_check(request: httpx.Request) -> httpx.Response:
        asked.wait(30)
        return active(request)

    asked, granted = threading.Event(), threading.Event()
    server.script(POLL, waiting(1), active_during_check)
    server.script(CHECK, busy)
    with connect(topologies=[topology, topology]) as client:
        granted.set()
        assert client.acquire(topology)
    assert len(server.of(CHECK)) == 1


def test_a_check_that_fails_does_not_reject_the_topology(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    server.script(POLL, *[waiting(1)] * 2, active)
    server.script(CHECK, CUT)
    with connect(topologies=[topology]) as client:
        assert client.rejected == {}


def test_leaves_the_queue_if_all_topologies_are_rejected(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    server.script(POLL, waiting(5))
    server.script(CHECK, refusal(422, "unknown attribute"))
    client = connect(topologies=[topology])
    assert client.rejected == {topology: "unknown attribute"}
    assert server.of(END)
    with pytest.raises(RuntimeError, match="the session is closed"):
        client.acquire(topology)


def test_the_end_of_a_session_and_a_call_after_close_are_different_exceptions(
    server: ScriptedServer, connect: Connect
) -> None:
    server.script(DESTROY, refusal(410, "held for too long"))
    with connect() as client, pytest.raises(SessionEnded) as caught:
        client.destroy()
    assert caught.value.reason == "held for too long"
    closed = connect()
    closed.close()
    with pytest.raises(SessionClosed):
        closed.destroy()


# Acquiring and releasing


def test_acquires_the_devices_of_a_topology(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    with connect() as client:
        devices = client.acquire(topology, reuse=False)
    assert devices == [DeviceInfoDto(name="r1", raw={"ansible_user": "admin"})]
    (request,) = server.of(ACQUIRE)
    assert request.headers["X-Session-ID"] == "s1"
    assert b'name="topology"; filename="triangle.yml"' in request.content
    assert b"nodes: [r1]\n" in request.content
    assert b'name="reuse"\r\n\r\nfalse' in request.content


def test_repeats_an_acquire_with_the_same_key(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    acquired = httpx.Response(200, json={"reused": True, "devices": []})
    server.script(ACQUIRE, CUT, refusal(504, "gateway timeout"), refusal(423, "lab busy"), acquired)
    with connect() as client:
        client.acquire(topology)
        assert client.references == (server.keys(ACQUIRE)[0],)
    assert len(server.keys(ACQUIRE)) == 4
    assert len(set(server.keys(ACQUIRE))) == 1
    assert all(b"nodes: [r1]\n" in request.content for request in server.of(ACQUIRE))


def parts(request: httpx.Request) -> dict[str, Any]:
    """The form of a request: what follows the headers of each part, by its name or the name of its file."""
    form = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + request.headers["Content-Type"].encode() + b"\r\n\r\n" + request.content
    )
    return {
        part.get_filename() or str(part.get_param("name", header="Content-Disposition")): part.get_payload(decode=True)
        for part in form.iter_parts()
    }


def test_sends_extra_files_anew_with_each_repetition(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        seen.append(parts(request))
        raise CUT

    seen: list[dict[str, Any]] = []
    large = bytes(range(256)) * 1000
    topology.with_name("firmware.bin").write_bytes(large)
    topology.with_name("empty").touch()
    (directory := topology.with_name("scripts")).mkdir()
    (script := directory / "start.sh").write_text("#!/bin/sh\n")
    script.chmod(0o755)
    server.script(ACQUIRE, cut, refusal(423, "lab busy"), *[server.scripted(ACQUIRE)])
    with connect() as client:
        client.acquire(topology, extra_files=["firmware.bin", "empty", Path("scripts")])
    seen += [parts(request) for request in server.of(ACQUIRE)[1:]]
    expected = {
        "reuse": b"true",
        "executable": b"scripts/start.sh",
        "triangle.yml": b"nodes: [r1]\n",
        "empty": b"",
        "firmware.bin": large,
        "scripts/start.sh": b"#!/bin/sh\n",
    }
    assert seen == [expected] * 3
    assert all("Content-Length" in request.headers for request in server.of(ACQUIRE))


def test_a_missing_extra_file_is_reported_before_anything_is_sent(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    with connect() as client:
        with pytest.raises(FileNotFoundError, match=r"no extra file 'motd\.j2'"):
            client.acquire(topology, extra_files=["motd.j2"])
        with pytest.raises(ValueError, match="not in the topology's directory"):
            client.acquire(topology, extra_files=["../motd.j2"])
    assert not server.of(ACQUIRE)


def test_a_file_that_shrinks_during_the_upload_is_reported(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    def busy(_: httpx.Request) -> httpx.Response:
        log.write_bytes(b"")
        return refusal(423, "lab busy")

    (log := topology.with_name("old.log")).write_bytes(b"line\n")
    server.script(ACQUIRE, busy)
    with connect() as client, pytest.raises(OSError, match=r"old\.log has become shorter"):
        client.acquire(topology, extra_files=["old.log"])


def test_waits_for_a_busy_lab_for_the_seconds_in_retry_after(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    busy = [
        refusal(423, "busy"),
        refusal(423, "busy", **{"Retry-After": "4"}),
        refusal(423, "busy", **{"Retry-After": "900"}),
    ]
    server.script(ACQUIRE, *busy, httpx.Response(200, json={"reused": True, "devices": []}))
    with connect() as client:
        client.acquire(topology)
    assert server.moments(ACQUIRE) == [0, 1, 5, 15]


def test_gives_up_on_a_lab_that_stays_busy(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    server.script(ACQUIRE, refusal(423, "ring.yml is in use"))
    with connect(lab_acquisition_timeout=10) as client:
        with pytest.raises(TimeoutError, match=r"no lab for triangle.yml in 10 s: ring.yml is in use"):
            client.acquire(topology)
        assert client.references == ()


def test_gives_up_an_acquire_if_the_server_does_not_come_back(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    server.script(ACQUIRE, CUT)
    with connect(lab_acquisition_timeout=10) as client, pytest.raises(TimeoutError, match="connection reset"):
        client.acquire(topology)


def test_reports_why_the_server_refuses_a_topology(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    server.script(ACQUIRE, refusal(422, "netlab: unknown attribute"))
    with connect() as client, pytest.raises(httpx.HTTPStatusError, match="POST /lab: 422: netlab: unknown attribute"):
        client.acquire(topology)


def test_the_response_to_an_acquire_may_take_longer_than_others(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    with connect(request_timeout=5, lab_acquisition_timeout=300) as client:
        client.acquire(topology)
        client.release()
    timeouts = [server.of(call)[0].extensions["timeout"] for call in (ACQUIRE, RELEASE)]
    assert [timeout["read"] for timeout in timeouts] == [300, 5]


def test_releases_exactly_the_references_that_it_holds(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    server.script(RELEASE, CUT, httpx.Response(204))
    with connect() as client:
        client.acquire(topology)
        client.acquire(topology)
        client.release()
        client.release()
        assert client.references == ()
    first, second = server.keys(ACQUIRE)
    assert first != second
    assert server.keys(RELEASE) == [second, second, first]


def test_keeps_a_reference_if_the_release_cannot_be_sent(
    server: ScriptedServer, connect: Connect, topology: Path
) -> None:
    server.script(RELEASE, CUT)
    with connect() as client:
        client.acquire(topology)
        with pytest.raises(httpx.ReadError):
            client.release()
        assert client.references == tuple(server.keys(ACQUIRE))


def test_release_without_a_lab_is_not_the_end_of_the_session(server: ScriptedServer, connect: Connect) -> None:
    server.script(RELEASE, refusal(404, "no lab is running"))
    with connect() as client:
        with pytest.raises(httpx.HTTPStatusError, match="no lab is running"):
            client.release()
        assert client.lost_reason is None


def test_destroys_the_lab(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    with connect() as client:
        client.acquire(topology)
        client.destroy(force=False)
        assert client.references == ()
    assert [request.url.params["force"] for request in server.of(DESTROY)] == ["false"]


def test_survives_a_restart_of_the_server_between_calls(
    server: ScriptedServer, connect: Connect, clock: PausedClock, topology: Path
) -> None:
    with connect() as client:
        for call in (lambda: client.acquire(topology), client.release, client.destroy):
            server.down_until = clock.seconds + UNREACHABLE_TIMEOUT - 1
            call()


def test_gives_up_when_the_server_does_not_come_back(server: ScriptedServer, connect: Connect) -> None:
    client = connect()
    server.script(DESTROY, CUT)
    with pytest.raises(httpx.ReadError, match="no answer from http://lab in 120 s: connection reset"):
        client.destroy()
    client.close()


def test_the_delay_between_attempts_grows(server: ScriptedServer, connect: Connect) -> None:
    client = connect()
    server.script(DESTROY, *[CUT] * 7, refusal(503, "draining", **{"Retry-After": "3"}), httpx.Response(204))
    client.destroy()
    client.close()
    moments = server.moments(DESTROY)
    pauses = [round(later - sooner, 1) for sooner, later in pairwise(moments)]
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 3]


# The end of a session


@pytest.mark.parametrize("status", [404, 410])
def test_every_call_reports_the_end_of_the_session(
    server: ScriptedServer, connect: Connect, topology: Path, status: int
) -> None:
    gone = refusal(status, "held for too long")
    for call in (ACQUIRE, RELEASE, DESTROY):
        client = connect()
        for path in (call, POLL):
            server.script(path, gone)
        actions = {
            ACQUIRE: lambda c: c.acquire(topology),
            RELEASE: RemoteLabClient.release,
            DESTROY: RemoteLabClient.destroy,
        }
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the session was ended by the server: held for too long"):
                actions[call](client)
        assert client.lost_reason == "held for too long"
        client.close()
        server.script(POLL, active)
    assert not server.of(END)


def test_close_may_be_called_again(server: ScriptedServer, connect: Connect) -> None:
    client = connect()
    client.close()
    client.close()
    assert len(server.of(END)) == 1


@pytest.mark.parametrize("trouble", [CUT, refusal(500, "bug"), refusal(503, "draining"), refusal(404, "unknown")])
def test_close_does_not_raise(server: ScriptedServer, connect: Connect, trouble: Answer) -> None:
    client = connect()
    server.script(END, trouble)
    client.close()


def test_close_survives_a_restart_of_the_server(server: ScriptedServer, connect: Connect, clock: PausedClock) -> None:
    client = connect()
    server.down_until = clock.seconds + 3
    client.close()
    assert server.moments(END)[-1] >= 3


def test_detach_leaves_the_session_to_others(server: ScriptedServer, connect: Connect, topology: Path) -> None:
    client = connect()
    client.detach()
    client.close()
    assert not server.of(END)
    with pytest.raises(RuntimeError, match="the session is closed"):
        client.acquire(topology)


def test_an_interrupted_join_ends_the_session(server: ScriptedServer, connect: Connect) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt  # after the server has created the session, before the client has its id

    server.script(JOIN, interrupt, httpx.Response(201, json={"session_id": "s1", "position": 1}))
    with pytest.raises(KeyboardInterrupt):
        connect()
    assert server.of(END)
    assert len(set(server.keys(JOIN))) == 1


def test_an_interrupted_join_does_not_wait_for_an_unreachable_server(
    server: ScriptedServer, connect: Connect, clock: PausedClock
) -> None:
    def interrupt(_: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    server.script(JOIN, interrupt, CUT)
    with pytest.raises(KeyboardInterrupt):
        connect()
    assert clock.seconds == 1000
    assert not server.of(END)


def test_an_interrupted_wait_ends_the_session(server: ScriptedServer, connect: Connect) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    server.script(POLL, waiting(1))
    with pytest.raises(KeyboardInterrupt):
        connect(on_progress=interrupt)
    assert server.of(END)


# Heartbeats, which another thread sends in real time


def test_heartbeats_continue_while_the_session_waits(server: ScriptedServer, connect: Connect) -> None:
    seen = threading.Event()

    def beat(request: httpx.Request) -> httpx.Response:
        assert request.headers["X-Session-ID"] == "s1"
        seen.set()
        return httpx.Response(204)

    def first_wait(_: httpx.Request) -> httpx.Response:
        assert seen.wait(10)
        return active(_)

    server.script(BEAT, beat)
    server.script(POLL, first_wait)
    connect(heartbeat_interval=0.001).close()


def test_heartbeats_continue_after_errors(server: ScriptedServer, connect: Connect) -> None:
    seen = threading.Event()

    def beat(_: httpx.Request) -> httpx.Response:
        seen.set()
        return httpx.Response(204)

    server.script(BEAT, *[CUT] * 20, refusal(500, "bug"), beat)
    with connect(heartbeat_interval=0.001):
        assert seen.wait(10)


def test_heartbeats_stop_with_the_session(server: ScriptedServer, connect: Connect) -> None:
    client = connect(heartbeat_interval=0.001)
    client.close()
    assert "remote-lab-heartbeat" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("status", [404, 410])
def test_a_lost_session_is_reported_once(server: ScriptedServer, connect: Connect, status: int) -> None:
    reasons: list[str] = []
    lost = threading.Event()

    def on_lost(reason: str) -> None:
        reasons.append(reason)
        lost.set()

    server.script(BEAT, httpx.Response(204), refusal(status, "ended by an operator"))
    with connect(heartbeat_interval=0.001, on_lost=on_lost) as client:
        assert lost.wait(10)
        assert client.lost_reason == "ended by an operator"
        with pytest.raises(RuntimeError, match="ended by an operator"):
            client.release()
    assert reasons == ["ended by an operator"]
    assert not server.of(END)


# Reports about a server that cannot be reached


@pytest.fixture
def reports() -> list[str]:
    return []


def test_a_server_that_has_never_answered_is_reported_soon_and_given_up_after_30_seconds(
    server: ScriptedServer, connect: Connect, clock: PausedClock, reports: list[str]
) -> None:
    server.script(JOIN, httpx.ConnectError("connection refused"))
    moments: list[float] = []

    def report(message: str) -> None:
        reports.append(message)
        moments.append(clock.seconds - 1000)

    with pytest.raises(httpx.ConnectError, match=r"^no answer from http://lab in 30 s: connection refused$"):
        connect(on_trouble=report)
    assert reports == ["no answer from http://lab: connection refused; giving up in 29 s"]
    assert 1 <= moments[0] <= 2


def test_a_wait_reports_an_unreachable_server_repeatedly_and_its_return(
    server: ScriptedServer, connect: Connect, clock: PausedClock, reports: list[str]
) -> None:
    def goes_down(_: httpx.Request) -> httpx.Response:
        server.down_until = clock.seconds + 100
        raise CUT

    server.script(POLL, waiting(1), goes_down, active)
    connect(on_trouble=reports.append).close()
    assert len(reports) == 5
    assert reports[0] == "no answer from http://lab: connection refused; giving up in 119 s"
    assert reports[-1] == "http://lab answers again"


def test_a_restart_of_less_than_a_second_is_not_reported(
    server: ScriptedServer, connect: Connect, clock: PausedClock, reports: list[str]
) -> None:
    server.script(POLL, waiting(1), CUT, refusal(503, "draining"), active)
    connect(on_trouble=reports.append).close()
    assert reports == []


def test_without_a_callback_an_unreachable_server_is_logged(
    server: ScriptedServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server.script(JOIN, CUT)
    with pytest.raises(httpx.ReadError):
        connect()
    assert "no answer from http://lab: connection reset; giving up in 29 s" in caplog.messages


def test_a_wait_gives_up_a_server_that_does_not_come_back(server: ScriptedServer, connect: Connect) -> None:
    server.script(POLL, waiting(1), CUT)
    with pytest.raises(httpx.ReadError, match="no answer from http://lab in 50 s: connection reset"):
        connect(session_timeout=3600, unreachable_timeout=50)
    server.script(POLL, waiting(1), refusal(503, "draining"))
    with pytest.raises(httpx.HTTPStatusError, match="503: draining"):
        connect(session_timeout=3600, unreachable_timeout=50)


def test_after_failed_retries_each_call_is_tried_once(
    server: ScriptedServer, connect: Connect, clock: PausedClock, topology: Path
) -> None:
    client = connect(unreachable_timeout=50)
    server.down_until = clock.seconds + 1000
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            client.acquire(topology)
    with pytest.raises(httpx.ConnectError):
        client.release()
    client.close()
    assert clock.seconds == 1050
    assert len([moment for moment in server.moments(ACQUIRE) if moment >= 50]) == 3


def test_calls_to_a_server_that_has_come_back_are_retried_again(
    server: ScriptedServer, connect: Connect, clock: PausedClock, topology: Path
) -> None:
    client = connect(unreachable_timeout=50)
    server.down_until = clock.seconds + 60
    with pytest.raises(httpx.ConnectError):
        client.acquire(topology)
    clock.pause(20)
    client.acquire(topology)
    server.down_until = clock.seconds + 40
    client.release()
    client.close()


def test_an_acquire_continues_although_a_proxy_cuts_it_repeatedly(
    server: ScriptedServer, connect: Connect, clock: PausedClock, topology: Path
) -> None:
    def cut(status: int) -> Answer:
        def held(_: httpx.Request) -> httpx.Response:
            clock.pause(60)
            if status:
                return refusal(status, "timeout")
            raise CUT

        return held

    acquired = httpx.Response(200, json={"reused": False, "devices": DEVICES})
    server.script(ACQUIRE, *map(cut, (504, 504, 524, 408, 0, 0, 0)), acquired)
    with connect(unreachable_timeout=30) as client:
        client.acquire(topology)
    assert len(set(server.keys(ACQUIRE))) == 1
    assert len(server.keys(ACQUIRE)) == 8


def test_a_wait_continues_although_a_proxy_cuts_long_polls(
    server: ScriptedServer, connect: Connect, clock: PausedClock, reports: list[str]
) -> None:
    def cut(_: httpx.Request) -> httpx.Response:
        clock.pause(20)
        return httpx.Response(504, html="<h1>504 Gateway Time-out</h1>")

    server.script(POLL, waiting(1), *[cut] * 10, active)
    connect(on_trouble=reports.append).close()
    assert len(server.of(POLL)) == 12
    assert reports == []


def test_a_call_at_the_end_of_the_interpreter_works(
    server: ScriptedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, topology: Path
) -> None:
    client = connect()
    client.acquire(topology)

    def no_more_threads(_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_more_threads)
    client.release()
    client.close()
    assert server.of(END)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504, 520, 521, 522, 523, 524])
@pytest.mark.parametrize("call", [JOIN, POLL, ACQUIRE, RELEASE, DESTROY, END])
def test_temporary_errors_of_a_proxy_are_retried(
    server: ScriptedServer, connect: Connect, topology: Path, status: int, call: str
) -> None:
    usual = server.scripted(call)
    page = httpx.Response(status, html="<h1>a proxy</h1>", headers={"Retry-After": "2"})
    server.script(call, page, page, usual)
    with connect() as client:
        client.acquire(topology)
        client.release()
        client.destroy()
    moments = server.moments(call)
    assert [later - sooner for sooner, later in pairwise(moments)][:2] == [2, 2]


def test_a_page_instead_of_a_response_raises_an_http_error(server: ScriptedServer, connect: Connect) -> None:
    server.script(JOIN, httpx.Response(200, html="<title>Please log in</title>"))
    with pytest.raises(httpx.HTTPError, match="200: Please log in: this is not a response of a lab server"):
        connect()


def test_a_redirect_names_the_setting(server: ScriptedServer, connect: Connect) -> None:
    server.script(JOIN, httpx.Response(308, html="<h1>Moved</h1>", headers={"Location": "https://lab/session"}))
    with pytest.raises(httpx.HTTPStatusError, match=r"308: redirected to .*: set REMOTE_LAB_URL=https://lab$"):
        connect()


def test_the_end_of_a_session_takes_a_few_seconds(server: ScriptedServer, connect: Connect, clock: PausedClock) -> None:
    client = connect(unreachable_timeout=600)
    server.down_until = clock.seconds + 1000
    with pytest.raises(httpx.ConnectError):
        client.release(timeout=CLOSE_TIMEOUT)
    client.close()
    assert clock.seconds - 1000 <= 2 * CLOSE_TIMEOUT


def test_an_invalid_address_fails_before_anything_is_sent(server: ScriptedServer) -> None:
    for url in ("lab-host:8000", "lab-host/8000", "http://lab-host:8000\n", "http://"):
        with pytest.raises(ValueError, match="base_url"):
            RemoteLabClient(url, transport=httpx.MockTransport(server))
    assert not server.requests


# Attributes of 1.x


def test_the_attributes_of_1x(connect: Connect) -> None:
    client = connect(request_timeout=11, session_timeout=22, lab_acquisition_timeout=33)
    names = ("base_url", "request_timeout", "session_timeout", "lab_acquisition_timeout")
    assert [getattr(client, name) for name in names] == ["http://lab", 11, 22, 33]
    ids = [client.session_id]
    client.close()
    assert [*ids, client.session_id] == ["s1", ""]


# Labels


@pytest.mark.parametrize(
    ("label", "sent"),
    [
        ("caf\u00e9 \u6771\u4eac", "caf\u00e9 \u6771\u4eac"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\udce9"),
        ("a\nb\x1b[31m\u202e\x9b\0", r"a\nb\x1b[31m\u202e\x9b\x00"),
        ("x" * 500, "x" * 200),
    ],
)
def test_labels_are_escaped_and_cut(server: ScriptedServer, connect: Connect, label: str, sent: str) -> None:
    connect(client=label, purpose=label, session_key=label).close()
    assert json.loads(server.of(JOIN)[0].content) == {"client": sent, "purpose": sent}


def test_a_file_name_that_is_not_utf8_can_be_sent(server: ScriptedServer, connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / b"r\xe9seau.yml".decode(errors="surrogateescape")
    path.write_text("nodes: [r1]\n")
    with connect() as client:
        client.acquire(path)
    assert b"udce9seau.yml" in server.of(ACQUIRE)[0].content


# Secrets

SESSION = "0123456789abcdef0123456789abcdef"


def test_no_log_and_no_message_shows_the_session_or_the_password(
    server: ScriptedServer, connect: Connect, caplog: pytest.LogCaptureFixture, reports: list[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    poll, end = f"GET /session/{SESSION}", f"DELETE /session/{SESSION}"
    server.script(JOIN, httpx.Response(201, json={"session_id": SESSION, "position": 0}))
    server.script(poll, waiting(1), CUT, refusal(503, "draining"), refusal(500, "a bug"))
    server.script(end, CUT)
    with pytest.raises(httpx.HTTPStatusError, match="GET /session/01234567…: 500: a bug"):
        connect(url="http://user:s3cret@lab", on_trouble=reports.append)
    text = caplog.text + "".join(reports)
    assert "GET /session/01234567…" in text
    assert SESSION not in text
    assert "s3cret" not in text
    assert not [record for record in caplog.records if record.name == "httpx"]
    httpx.Client(transport=httpx.MockTransport(server)).get("http://other/queue")
    assert [record for record in caplog.records if record.name == "httpx"]  # other clients log their requests


def test_no_traceback_shows_the_session_or_the_password(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        f"""
        import os
        import httpx
        from neops_remote_lab.client import RemoteLabClient

        def answer(request):
            if request.method == "POST":
                return httpx.Response(201, json={{"session_id": "{SESSION}", "position": 1}})
            if request.method == "DELETE":
                return httpx.Response(204)
            if request.url.params["wait"] == "1":
                raise httpx.ConnectError("refused")
            return httpx.Response(200, json={{"status": "waiting", "position": 1}})

        def test_it():
            RemoteLabClient(os.environ["REMOTE_LAB_URL"], 2, 2, transport=httpx.MockTransport(answer))
        """
    )
    monkeypatch.setenv("REMOTE_LAB_URL", "http://user:s3cret@lab")
    result = pytester.runpytest_subprocess("--tb=long", "--junit-xml=junit.xml", "-p", "no:cacheprovider")
    text = result.stdout.str() + result.stderr.str() + pytester.path.joinpath("junit.xml").read_text()
    result.assert_outcomes(failed=1)
    assert "not active within 2 s" in text
    for secret in (f"/session/{SESSION}", f"'{SESSION}'", "s3cret"):
        assert secret not in text


# The connection, as the controller of a pytest-xdist run uses it


def test_a_connection_ends_a_session_by_its_key(server: ScriptedServer, clock: PausedClock) -> None:
    with ServerConnection("http://lab/prefix/", transport=httpx.MockTransport(server), clock=clock) as connection:
        server.script("POST /prefix/session", httpx.Response(201, json={"session_id": "s7", "position": 3}))
        connection.end_session_of("run-1")
    assert server.keys("POST /prefix/session") == ["run-1"]
    assert server.of("DELETE /prefix/session/s7")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (httpx.Response(500, text="plain words"), "plain words"),
        (httpx.Response(500, json=["no", "object"]), r'\["no","object"\]'),
        (httpx.Response(500), "Internal Server Error"),
    ],
)
def test_a_response_of_any_form_is_reported(
    server: ScriptedServer, connect: Connect, answer: Answer, text: str
) -> None:
    server.script(DESTROY, answer)
    with connect() as client, pytest.raises(httpx.HTTPStatusError, match=f"DELETE /lab: 500: {text}"):
        client.destroy()
