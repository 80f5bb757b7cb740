"""The keeper of a session, with a stub server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client.connection import ServerConnection
from neops_remote_lab.client.keeper import INTERVAL, UNREACHABLE_LIMIT, Keeper
from neops_remote_lab.client.state import KeptSession, StateDirectory
from neops_remote_lab.core.clock import Clock

URL, SESSION = "http://lab-host:8000", "0123456789abcdef"
START = datetime(2030, 1, 1, tzinfo=UTC)
ALIVE, ENDED = httpx.Response(204), httpx.Response(410, json={"detail": "an operator ended it"})


class Harness(Clock):
    """A saved session for a keeper, with a stub server and a clock that only pauses advance.

    Attributes:
        beat: the answer to a heartbeat; its argument is the time in seconds since the start.
        queue: entries of the queue.
        calls: method and path of each request.
    """

    def __init__(self, directory: Path, **fields: object) -> None:
        self.seconds = 0.0
        self.calls: list[tuple[str, str]] = []
        self.beat: Callable[[float], httpx.Response] = lambda _: ALIVE
        self.queue: list[dict[str, object]] = []
        self.state = StateDirectory(directory)
        self.kept = KeptSession.model_validate({"url": URL, "session_id": SESSION, "kept_since": START, **fields})
        self.state.save(self.kept)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls.append((request.method, request.url.path))
        if request.url.path == "/queue":
            return httpx.Response(200, json={"length": len(self.queue), "sessions": self.queue})
        if request.method == "DELETE":
            return httpx.Response(204)
        assert request.headers["X-Session-ID"] == SESSION
        answer = self.beat(self.seconds)
        return httpx.Response(answer.status_code, content=answer.content)

    def run(self) -> str:
        transport = httpx.MockTransport(self.answer)
        with ServerConnection(URL, transport=transport, clock=self, pause=self.pause) as server:
            return Keeper(server, self.state, self.kept, clock=self, pause=self.pause).run()


def entry(status: str) -> dict[str, object]:
    position = int(status == "waiting")
    return {
        "session_id": "0123",
        "position": position,
        "status": status,
        "age_seconds": 1,
        "last_seen_seconds": 1,
    }


def test_the_keeper_ends_with_its_session(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.beat = lambda seconds: ALIVE if seconds < 4 * INTERVAL else ENDED
    assert harness.run() == "the server has ended the session: an operator ended it"
    assert harness.calls == [("POST", "/session/heartbeat")] * 5
    assert harness.state.find(URL) is None


def test_the_keeper_ends_without_a_call_if_the_state_file_is_removed(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    harness.state.forget(harness.kept)
    assert harness.run() == "the state file of the session was removed or replaced"
    assert harness.calls == []


def test_the_keeper_does_not_touch_a_session_that_has_replaced_its_own(tmp_path: Path) -> None:
    harness = Harness(tmp_path)
    later = harness.kept.model_copy(update={"session_id": "fedcba9876543210"})
    harness.state.save(later)
    assert harness.run() == "the state file of the session was removed or replaced"
    assert harness.state.find(URL) == later


def test_the_keeper_ends_the_session_at_its_time_limit(tmp_path: Path) -> None:
    harness = Harness(tmp_path, kept_until=START + timedelta(minutes=30))
    assert harness.run() == "the session is over: its time is up"
    assert harness.seconds == 1800
    assert harness.calls[-1] == ("DELETE", f"/session/{SESSION}")
    assert harness.state.find(URL) is None


def test_a_session_that_yields_ends_as_soon_as_another_one_waits(tmp_path: Path) -> None:
    harness = Harness(tmp_path, yields=True)
    harness.queue = [entry("active")]

    def join(seconds: float) -> httpx.Response:
        if seconds >= 3 * INTERVAL:
            harness.queue.append(entry("waiting"))
        return ALIVE

    harness.beat = join
    assert harness.run() == "the session is over: another one waits"
    assert harness.calls[-1] == ("DELETE", f"/session/{SESSION}")


@pytest.mark.parametrize("failure", [httpx.Response(503), httpx.Response(502), None])
def test_the_keeper_waits_for_a_server_that_restarts(tmp_path: Path, failure: httpx.Response | None) -> None:
    harness = Harness(tmp_path)

    def beat(seconds: float) -> httpx.Response:
        if seconds < 3600:
            if failure is None:
                raise httpx.ConnectError("connection refused")
            return failure
        return ENDED

    harness.beat = beat
    assert "an operator ended it" in harness.run()


def test_the_keeper_gives_up_an_unreachable_server(tmp_path: Path) -> None:
    harness = Harness(tmp_path)

    def beat(_: float) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    harness.beat = beat
    assert "has not answered" in harness.run()
    assert harness.seconds == pytest.approx(UNREACHABLE_LIMIT, abs=INTERVAL)
