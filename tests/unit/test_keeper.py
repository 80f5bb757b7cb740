"""The process that keeps a session alive, with a stub server."""

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


class Scene(Clock):
    """One remembered session, and a server whose answers depend on the time, in seconds since the start."""

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
    scene = Scene(tmp_path)
    scene.beat = lambda seconds: ALIVE if seconds < 4 * INTERVAL else ENDED
    assert scene.run() == "the server has ended the session: an operator ended it"
    assert scene.calls == [("POST", "/session/heartbeat")] * 5
    assert scene.state.find(URL) is None


def test_the_keeper_ends_without_a_call_if_the_session_is_forgotten(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.state.forget(scene.kept)
    assert scene.run() == "the state file of the session was removed or replaced"
    assert scene.calls == []


def test_the_keeper_does_not_touch_a_session_that_has_replaced_its_own(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    later = scene.kept.model_copy(update={"session_id": "fedcba9876543210"})
    scene.state.save(later)
    assert scene.run() == "the state file of the session was removed or replaced"
    assert scene.state.find(URL) == later


def test_the_keeper_ends_the_session_at_its_time_limit(tmp_path: Path) -> None:
    scene = Scene(tmp_path, kept_until=START + timedelta(minutes=30))
    assert scene.run() == "the session is over: its time is up"
    assert scene.seconds == 1800
    assert scene.calls[-1] == ("DELETE", f"/session/{SESSION}")
    assert scene.state.find(URL) is None


def test_a_session_that_yields_ends_as_soon_as_another_one_waits(tmp_path: Path) -> None:
    scene = Scene(tmp_path, yields=True)
    scene.queue = [entry("active")]

    def join(seconds: float) -> httpx.Response:
        if seconds >= 3 * INTERVAL:
            scene.queue.append(entry("waiting"))
        return ALIVE

    scene.beat = join
    assert scene.run() == "the session is over: another one waits"
    assert scene.calls[-1] == ("DELETE", f"/session/{SESSION}")


@pytest.mark.parametrize("away", [httpx.Response(503), httpx.Response(502), None])
def test_the_keeper_waits_for_a_server_that_restarts(tmp_path: Path, away: httpx.Response | None) -> None:
    scene = Scene(tmp_path)

    def beat(seconds: float) -> httpx.Response:
        if seconds < 3600:
            if away is None:
                raise httpx.ConnectError("connection refused")
            return away
        return ENDED

    scene.beat = beat
    assert "an operator ended it" in scene.run()


def test_the_keeper_gives_up_an_unreachable_server(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    def beat(_: float) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    scene.beat = beat
    assert "has not answered" in scene.run()
    assert scene.seconds == pytest.approx(UNREACHABLE_LIMIT, abs=INTERVAL)
