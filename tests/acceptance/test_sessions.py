"""The queue over HTTP: joining, waiting, becoming active, stale sessions, ending."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

from neops_remote_lab import __version__
from neops_remote_lab.client import RemoteLabClient
from tests.chaos.shell import sql
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, running_server
from tests.stores import NewDatabase

UNKNOWN = "0" * 32


@pytest.fixture(scope="module")
def long_lived(new_database: NewDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    directory = tmp_path_factory.mktemp("server")
    with new_database(directory) as database, running_server(directory, database=database) as server:
        yield server


@pytest.fixture
def server(long_lived: LabServer) -> Iterator[LabServer]:
    """A server with an empty queue. All sessions are ended after the test."""
    yield long_lived
    end_everybody(long_lived)


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[LabServer]:
    """A server on which sessions are stale after a second without a call."""
    with running_server(tmp_path, waiting_timeout="1", active_timeout="1") as server:
        yield server


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def end_everybody(server: LabServer) -> None:
    for (session_id,) in sql(
        server.database_url, "SELECT session_id FROM session WHERE state <> 'ended' ORDER BY number DESC"
    ):
        httpx.delete(f"{server.url}/session/{session_id}")
    wait_until(lambda: not sql(server.database_url, "SELECT 1 FROM lab WHERE state <> 'ended'"), 20, "a lab is left")


def get(server: LabServer, path: str, **options: Any) -> httpx.Response:
    return httpx.get(server.url + path, timeout=90, **options)


def post(server: LabServer, path: str, **options: Any) -> httpx.Response:
    return httpx.post(server.url + path, timeout=90, **options)


def end(server: LabServer, session_id: str) -> httpx.Response:
    return httpx.delete(f"{server.url}/session/{session_id}", timeout=90)


def heartbeat(server: LabServer, session_id: str) -> httpx.Response:
    return post(server, "/session/heartbeat", headers={"X-Session-ID": session_id})


def queue(server: LabServer) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = get(server, "/queue").json()["sessions"]
    return sessions


def held_call(server: LabServer, background: ThreadPoolExecutor, session_id: str) -> Future[httpx.Response]:
    """A call of GET /session?wait= that the server is holding."""
    call = background.submit(get, server, f"/session/{session_id}?wait=60")
    # the server holds the call once the session was seen after the call was sent
    wait_until(lambda: any(e["session_id"] == session_id[:8] and e["last_seen_seconds"] == 0 for e in queue(server)))
    return call


def keep_alive(server: LabServer, session_id: str, over: threading.Event) -> None:
    while not over.wait(0.2):
        heartbeat(server, session_id)


# Joining


def test_the_first_to_join_is_active_and_the_others_wait_in_order(server: LabServer) -> None:
    answers = [post(server, "/session") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert [answer.json()["position"] for answer in answers] == [0, 1, 2]
    ids = [answer.json()["session_id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [server.status(session_id)["status"] for session_id in ids] == ["active", "waiting", "waiting"]


def test_a_join_is_in_the_database_before_the_response(server: LabServer) -> None:
    session_id = server.join(client="ann@office")
    query = "SELECT state, client FROM session WHERE session_id = ?"
    assert sql(server.database_url, query, session_id) == [("active", "ann@office")]


def test_concurrent_joins_get_different_positions_and_one_session_is_active(
    server: LabServer, background: ThreadPoolExecutor
) -> None:
    answers = [call.result().json() for call in [background.submit(post, server, "/session") for _ in range(24)]]
    assert len({answer["session_id"] for answer in answers}) == 24
    places = [server.status(answer["session_id"]) for answer in answers]
    assert sorted(place["position"] for place in places) == list(range(24))
    assert [place["status"] for place in places].count("active") == 1


def test_a_repeated_join_with_the_same_key_is_the_same_session(server: LabServer) -> None:
    server.join()
    headers = {"Idempotency-Key": "build-17"}
    first, again = (post(server, "/session", headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert post(server, "/session", headers={"Idempotency-Key": "build-18"}).json() != first.json()
    assert len(queue(server)) == 3


def test_concurrent_repeated_joins_are_one_session(server: LabServer, background: ThreadPoolExecutor) -> None:
    headers = {"Idempotency-Key": "build-19"}
    calls = [background.submit(post, server, "/session", headers=headers) for _ in range(12)]
    assert {call.result().status_code for call in calls} == {201}
    assert len({call.result().json()["session_id"] for call in calls}) == 1
    assert len(queue(server)) == 1


def test_the_key_of_an_ended_session_joins_again(server: LabServer) -> None:
    headers = {"Idempotency-Key": "build-20"}
    first = post(server, "/session", headers=headers).json()["session_id"]
    end(server, first)
    assert post(server, "/session", headers=headers).json()["session_id"] != first


def test_labels_of_the_maximum_length_are_shown(server: LabServer) -> None:
    label = "ü" * 200
    server.join(client=label, purpose='<script>"x"</script>')
    (entry,) = queue(server)
    assert (entry["client"], entry["purpose"]) == (label, '<script>"x"</script>')


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="not closed"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"client": 1}', id="a number for a text"),
        pytest.param(b'{"client": "\\ud800"}', id="half a character"),
        pytest.param(b'{"client": "ann", "colour": "red"}', id="unknown field"),
        pytest.param(json.dumps({"client": "x" * 201}).encode(), id="too long a label"),
        pytest.param(b"[" * 6_000, id="deep nesting"),
        pytest.param(b'{"client": ' + b"[" * 3_000 + b"]" * 3_000 + b"}", id="deep nesting in a field"),
    ],
)
def test_an_invalid_body_is_refused_without_a_join(server: LabServer, body: bytes) -> None:
    answer = post(server, "/session", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json().keys() == {"detail"}
    assert answer.json()["detail"]
    assert queue(server) == []


def test_an_endless_body_is_refused_without_a_join(server: LabServer) -> None:
    answer = post(server, "/session", content=b"{" + b" " * 1_000_000)
    assert answer.status_code == 413
    assert queue(server) == []


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_a_key_with_an_invalid_length_is_refused(server: LabServer, key: str) -> None:
    answer = post(server, "/session", headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]
    assert queue(server) == []


# Positions


def test_positions_move_up_when_a_session_in_the_middle_leaves(server: LabServer) -> None:
    ids = [server.join() for _ in range(4)]
    assert end(server, ids[1]).status_code == 204
    assert [server.status(session_id)["position"] for session_id in (ids[0], ids[2], ids[3])] == [0, 1, 2]


def test_sessions_become_active_in_the_order_of_their_joins(server: LabServer) -> None:
    ids = [server.join() for _ in range(6)]
    served = []
    for _ in ids:
        (current,) = [s for s in ids if s not in served and server.status(s)["position"] == 0]
        served.append(current)
        end(server, current)
    assert served == ids


def test_a_waiting_session_sees_the_active_client_its_topology_and_since_when(server: LabServer) -> None:
    holder = server.join(client="ann@office", purpose="nightly")
    waiter = server.join()
    assert server.status(holder)["waiting_for"] is None
    server.acquire(holder, topology_text(1), "ospf.yml")
    sentence = server.status(waiter)["waiting_for"]
    for part in ("ann@office", "nightly", "ospf.yml", time.strftime("%Y-", time.gmtime())):
        assert part in sentence
    assert holder not in sentence


def test_the_estimated_wait_is_based_on_the_history_of_the_host(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        holder, waiter = server.join(), server.join()
        assert server.status(waiter)["eta_seconds"] is None
        end(server, holder)
        last = server.join()
        assert server.status(waiter)["eta_seconds"] is None  # it is active
        assert server.status(last)["eta_seconds"] >= 0
        server.restart()
        assert server.status(last)["eta_seconds"] >= 0


def test_the_queue_shows_all_sessions_with_shortened_ids(server: LabServer) -> None:
    holder, waiter = server.join(client="ann", purpose="nightly"), server.join()
    server.acquire(holder, topology_text(1), "ospf.yml")
    answer = get(server, "/queue")
    assert (answer.status_code, answer.json()["length"]) == (200, 2)
    first, second = answer.json()["sessions"]
    assert (first["session_id"], second["session_id"]) == (holder[:8], waiter[:8])
    assert (first["position"], first["status"], second["position"], second["status"]) == (0, "active", 1, "waiting")
    assert (first["client"], first["purpose"], first["topology"]) == ("ann", "nightly", "ospf.yml")
    assert (second["client"], second["topology"], second["active_seconds"]) == (None, None, None)
    assert min(first["age_seconds"], first["active_seconds"], first["last_seen_seconds"]) >= 0
    assert holder not in answer.text
    assert waiter not in answer.text


def test_the_queue_can_be_limited_to_its_head(server: LabServer) -> None:
    for _ in range(3):
        server.join()
    answer = get(server, "/queue?limit=2").json()
    assert (answer["length"], len(answer["sessions"])) == (3, 2)
    assert get(server, "/queue?limit=0").json()["sessions"] == []
    assert len(get(server, "/queue?limit=1e300").json()["sessions"]) == 3


def test_only_the_owner_sees_the_whole_id_of_the_active_session(server: LabServer) -> None:
    assert get(server, "/active-session").status_code == 404
    holder, waiter = server.join(), server.join()
    own = get(server, "/active-session", headers={"X-Session-ID": holder})
    assert (own.status_code, own.json()) == (200, {"session_id": holder, "status": "active", "position": 0})
    for headers in ({}, {"X-Session-ID": waiter}, {"X-Session-ID": holder[:8]}):
        other = get(server, "/active-session", headers=headers)
        assert other.json() == {"session_id": holder[:8], "status": "active", "position": 0}


# Waiting


def test_a_long_poll_is_answered_when_the_session_becomes_active(
    server: LabServer, background: ThreadPoolExecutor
) -> None:
    holder, waiter = server.join(), server.join()
    call = held_call(server, background, waiter)
    assert not call.done()
    end(server, holder)
    answer = call.result(10)
    assert (answer.status_code, answer.json()["status"], answer.json()["position"]) == (200, "active", 0)


def test_a_long_poll_is_answered_when_its_session_ends(server: LabServer, background: ThreadPoolExecutor) -> None:
    server.join()
    waiter = server.join()
    call = held_call(server, background, waiter)
    end(server, waiter)
    assert call.result(10).status_code == 404


def test_a_long_poll_is_answered_when_an_operator_ends_its_session_with_sql(
    server: LabServer, background: ThreadPoolExecutor
) -> None:
    server.join()
    waiter = server.join()
    call = held_call(server, background, waiter)
    sql(server.database_url, "UPDATE session SET state = 'ended' WHERE session_id = ?", waiter)
    answer = call.result(10)
    assert answer.status_code == 410
    assert "ended by an operator" in answer.json()["detail"]


def test_a_long_poll_is_answered_after_its_time(server: LabServer) -> None:
    server.join()
    waiter = server.join()
    assert server.status(waiter, wait=0.05)["status"] == "waiting"


def test_several_long_polls_of_one_session_are_all_answered(server: LabServer, background: ThreadPoolExecutor) -> None:
    holder, waiter = server.join(), server.join()
    calls = [held_call(server, background, waiter) for _ in range(4)]
    end(server, holder)
    assert [call.result(10).json()["position"] for call in calls] == [0] * 4


def test_a_long_poll_is_answered_when_the_position_changes(server: LabServer, background: ThreadPoolExecutor) -> None:
    ids = [server.join() for _ in range(4)]
    for position in (2, 1, 0):
        call = held_call(server, background, ids[3])
        end(server, ids[2 - position])
        assert call.result(30).json()["position"] == position


def test_a_long_poll_with_an_outdated_position_is_answered_at_once(server: LabServer) -> None:
    _, _, last = [server.join() for _ in range(3)]
    with server.client() as client:
        answer = client.get(f"/session/{last}", params={"wait": 60, "position": 3})  # well within the client's timeout
        assert answer.json()["position"] == 2
        assert client.get(f"/session/{last}", params={"wait": 60, "position": "x"}).status_code == 422


def test_the_client_reports_each_position(server: LabServer, background: ThreadPoolExecutor) -> None:
    ids = [server.join() for _ in range(3)]
    seen: SimpleQueue[int] = SimpleQueue()
    joining = background.submit(RemoteLabClient, server.url, on_progress=lambda position, _: seen.put(position))
    for position, leaving in ((3, ids[0]), (2, ids[1]), (1, ids[2])):
        assert seen.get(timeout=30) == position
        end(server, leaving)
    assert seen.get(timeout=30) == 0
    joining.result(30).close()


def test_waiting_when_already_active_is_answered_at_once(server: LabServer) -> None:
    holder = server.join()
    assert server.status(holder, wait=60)["status"] == "active"  # well within the client's timeout


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "inf", "-inf", "1e999", "", "1,5", "0x10", "%00", "\u0661x"])
@pytest.mark.parametrize("path", ["/session/{session_id}?wait=", "/queue?limit="])
def test_a_query_parameter_that_is_not_a_number_is_refused(server: LabServer, path: str, value: str) -> None:
    answer = get(server, path.format(session_id=server.join()) + value)
    assert answer.status_code == 422, answer.text
    assert ("wait" if "wait" in path else "limit") in answer.json()["detail"]
    assert len(queue(server)) == 1


# Ending


def test_the_next_session_is_active_without_waiting_for_the_teardown(server: LabServer) -> None:
    holder, waiter = server.join(), server.join()
    assert server.acquire(holder, topology_text(1, down_seconds=2)).status_code == 200
    assert end(server, holder).status_code == 204
    assert server.status(waiter)["status"] == "active"
    assert not server.is_clean()
    wait_until(server.is_clean, 20)


def test_an_ended_session_is_unknown_from_then_on(server: LabServer) -> None:
    session_id = server.join()
    assert end(server, session_id).status_code == 204
    assert end(server, session_id).status_code == 404
    assert get(server, f"/session/{session_id}").status_code == 404
    assert heartbeat(server, session_id).status_code == 404
    assert server.acquire(session_id, topology_text(1)).status_code == 404


@pytest.mark.parametrize("session_id", [UNKNOWN, "x", "..", "%00", "%ff", "a" * 5000, "' OR 1=1 --"])
def test_an_unknown_session_is_not_found(server: LabServer, session_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = httpx.request(method, f"{server.url}/session/{session_id}")
        assert answer.status_code == 404
        assert answer.json().keys() == {"detail"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/session/heartbeat"),
        ("POST", "/lab"),
        ("GET", "/lab"),
        ("GET", "/lab/devices"),
        ("GET", "/lab/log"),
        ("POST", "/lab/release"),
        ("DELETE", "/lab"),
    ],
)
def test_a_call_on_the_lab_needs_the_header_of_an_active_session(server: LabServer, method: str, path: str) -> None:
    def call(**headers: str) -> httpx.Response:
        return httpx.request(method, server.url + path, headers=headers)

    missing = call()
    assert missing.status_code == 422
    assert "X-Session-ID" in missing.json()["detail"]
    assert call(**{"X-Session-ID": UNKNOWN}).status_code == 404
    assert call(**{"X-Session-ID": "x" * 10_000}).status_code == 404
    server.join()
    waiter = call(**{"X-Session-ID": server.join()})
    if path == "/session/heartbeat":
        assert waiter.status_code == 204
    else:
        assert waiter.status_code == 423
        assert int(waiter.headers["Retry-After"]) >= 1
    assert server.is_clean()


def test_a_stale_session_is_ended_and_gets_the_reason(impatient: LabServer) -> None:
    holder = impatient.join()
    over = threading.Event()
    alive = threading.Thread(target=keep_alive, args=(impatient, holder, over))
    alive.start()
    try:
        waiter = impatient.join()
        wait_until(lambda: len(queue(impatient)) == 1)
        answer = get(impatient, f"/session/{waiter}")
        assert answer.status_code == 410
        assert "timeout" in answer.json()["detail"]
        assert end(impatient, waiter).status_code == 404
        assert impatient.status(holder)["status"] == "active"
    finally:
        over.set()
        alive.join()
    wait_until(lambda: queue(impatient) == [])
    assert get(impatient, f"/session/{holder}").status_code == 410


def test_the_lab_of_a_stale_session_goes_to_the_next_session(impatient: LabServer) -> None:
    holder = impatient.join()
    assert impatient.acquire(holder, topology_text(1)).status_code == 200
    answer = get(impatient, f"/session/{impatient.join()}?wait=30")
    assert answer.json()["status"] == "active"
    assert get(impatient, f"/session/{holder}").status_code == 410
    wait_until(impatient.is_clean, 20)


def test_an_open_call_keeps_its_session_alive(impatient: LabServer, background: ThreadPoolExecutor) -> None:
    holder = impatient.join()
    acquire = background.submit(impatient.acquire, holder, topology_text(1, start_seconds=3))
    waiter = impatient.join()
    held = background.submit(get, impatient, f"/session/{waiter}?wait=2.5")
    assert held.result().json()["status"] == "waiting"
    assert acquire.result().status_code == 200


def test_a_request_of_the_position_keeps_a_session_alive(impatient: LabServer) -> None:
    session_id = impatient.join()
    began = time.monotonic()
    wait_until(lambda: impatient.status(session_id)["position"] == 0 and time.monotonic() - began > 2)
    assert impatient.status(session_id)["status"] == "active"


def test_a_request_of_the_active_session_keeps_no_session_alive(impatient: LabServer) -> None:
    session_id = impatient.join()

    def is_gone() -> bool:
        return get(impatient, "/active-session", headers={"X-Session-ID": session_id}).status_code == 404

    wait_until(is_gone)


def test_the_maximum_hold_ends_a_session_despite_its_calls(tmp_path: Path) -> None:
    with running_server(tmp_path, max_hold="1") as server:
        holder, waiter = server.join(), server.join()
        over = threading.Event()
        alive = threading.Thread(target=keep_alive, args=(server, holder, over))
        alive.start()
        try:
            assert server.status(waiter, wait=30)["status"] == "active"
        finally:
            over.set()
            alive.join()
        answer = get(server, f"/session/{holder}")
        assert answer.status_code == 410
        assert "maximum hold" in answer.json()["detail"]


def test_an_operator_moves_the_queue_with_sql(server: LabServer) -> None:
    holder, first, second = (server.join() for _ in range(3))
    swap = "UPDATE session SET rank = ? WHERE session_id = ?"
    numbers = dict(sql(server.database_url, "SELECT session_id, number FROM session WHERE state = 'waiting'"))
    for number, session_id in ((-1, first), (numbers[first], second), (numbers[second], first)):
        sql(server.database_url, swap, number, session_id)
    wait_until(lambda: server.status(second)["position"] == 1, 5)
    assert server.status(first)["position"] == 2
    sql(server.database_url, "UPDATE session SET state = 'ended', end_detail = 'lunch' WHERE session_id = ?", holder)
    wait_until(lambda: server.status(second)["position"] == 0, 5)
    assert "lunch" in get(server, f"/session/{holder}").json()["detail"]


# Other calls


def test_health_touches_nothing(server: LabServer) -> None:
    server.join()
    before = sql(server.database_url, "SELECT * FROM session ORDER BY number")
    answer = get(server, "/healthz")
    assert (answer.status_code, answer.content) == (204, b"")
    assert get(server, "/debug/health").status_code == 200
    assert sql(server.database_url, "SELECT * FROM session ORDER BY number") == before


def test_debug_health_counts_the_sessions(server: LabServer) -> None:
    for _ in range(3):
        server.join()
    numbers = get(server, "/debug/health").json()
    assert numbers.keys() >= {"status", "timestamp", "uptime", "sessions", "queue_length"}
    assert (numbers["sessions"], numbers["queue_length"]) == (3, 3)
    assert numbers["uptime"] > 0
    assert numbers["version"] == __version__


def test_the_server_is_ready_when_netlab_can_be_run(server: LabServer) -> None:
    assert get(server, "/readyz").status_code == 200


def test_the_defaults_of_netlab_are_checked_at_the_first_request(lab_server: LabServer) -> None:
    host = lab_server.fake
    wait_until(lambda: "this host has netlab" in lab_server.log.read_text(), 20, "the versions are not in the log")
    assert host.probes() == []
    for _ in range(2):
        assert get(lab_server, "/readyz").status_code == 200
    assert len(host.probes()) == 1


def test_without_netlab_the_server_is_not_ready_and_gives_the_reason(tmp_path: Path) -> None:
    with running_server(tmp_path, netlab="no-such-netlab") as server:
        answer = get(server, "/readyz")
        assert answer.status_code == 503
        assert "netlab" in answer.json()["detail"]
        acquired = server.acquire(server.join(), topology_text(1))
        assert acquired.status_code == 500
        assert "netlab cannot be run" in acquired.json()["detail"]
        assert server.is_clean()


@pytest.mark.parametrize(
    ("settings", "knobs", "missing"),
    [
        pytest.param({"docker": "no-such-docker"}, {}, "Docker cannot be run", id="no Docker"),
        pytest.param({}, {"docker_unreachable": True}, "Docker does not answer: exit status 1", id="no daemon"),
        pytest.param({}, {"fail": "create"}, "own defaults", id="a host on which no lab can start"),
        pytest.param({"docker": "no-such-docker", "containers": "no"}, {}, "", id="no containers, no Docker"),
        pytest.param({"containers": "no"}, {"docker_unreachable": True}, "", id="no containers, no daemon"),
    ],
)
def test_the_server_is_ready_when_a_lab_can_start_and_end(
    tmp_path: Path, settings: dict[str, str], knobs: dict[str, Any], missing: str
) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"), settings)
    server.fake.control(**knobs)
    try:
        server.start()
        answer = get(server, "/readyz")
        assert answer.status_code == (503 if missing else 200), answer.text
        assert missing in answer.text
        assert str(tmp_path) not in answer.text
    finally:
        server.close()


def test_the_result_of_the_readiness_check_is_cached(tmp_path: Path) -> None:
    with running_server(tmp_path, ready_cache="3600") as server:
        assert get(server, "/readyz").status_code == 200
        server.fake.control(docker_unreachable=True)
        assert get(server, "/readyz").status_code == 200


def test_the_versions_of_tools_are_logged_at_the_start(server: LabServer) -> None:
    message = f"netlab 26.10 ({server.fake.bin / 'netlab'}), Docker "
    wait_until(lambda: message in server.log.read_text(), 30, "the versions are not logged")
    assert f"containerlab 0.76.0 ({server.fake.bin / 'containerlab'})" in server.log.read_text()


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("POST", "/lab/nothing", 404),
        ("PUT", "/session/a/b", 404),
        ("GET", "/docs/none", 404),
        ("GET", "/session", 405),
        ("PATCH", "/session/a", 405),
        ("DELETE", "/healthz", 405),
        ("PUT", "/lab", 405),
        ("GET", "/lab/release", 405),
        ("POST", "/docs/none", 405),
    ],
)
def test_an_unknown_path_or_method_is_answered_like_any_other_error(
    server: LabServer, method: str, path: str, code: int
) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == code
    assert answer.json().keys() == {"detail"}
    assert answer.json()["detail"]


def test_endless_headers_do_not_stop_the_server(server: LabServer) -> None:
    try:
        answer = httpx.get(f"{server.url}/lab", headers={"X-Session-ID": "x" * 1_000_000})
    except httpx.TransportError:
        pass
    else:
        assert 400 <= answer.status_code < 500
    assert get(server, "/healthz").status_code == 204
