"""The lab over HTTP: acquire, share, release, teardown, and failures of netlab and of clients."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.chaos.shell import fake, is_running, lab, preloaded_netlabs, sql
from tests.fakes import install_fake_netlab, topology_text, wait_until
from tests.server import LabServer, running_server

ROUTERS = topology_text(2)
OTHER = topology_text(1, name="other")


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server"), kill_grace="0.2") as server:
        yield server


@pytest.fixture
def server(long_lived: LabServer) -> Iterator[LabServer]:
    """A server with an empty queue. At the end of the test nothing of a lab is left."""
    (fake(long_lived).state / "log").unlink(missing_ok=True)
    yield long_lived
    fake(long_lived).control()
    query = "SELECT session_id FROM session WHERE state <> 'ended' ORDER BY number DESC"
    for (session_id,) in sql(long_lived.database, query):
        httpx.delete(f"{long_lived.url}/session/{session_id}")
    wait_until(lambda: no_lab(long_lived), 20, "a lab is left")
    assert fake(long_lived).violations() == []


@pytest.fixture
def holder(server: LabServer) -> str:
    """The active session."""
    return server.join()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def no_lab(server: LabServer) -> bool:
    return server.is_clean() and not sql(server.database, "SELECT 1 FROM lab WHERE state <> 'ended'")


def call(server: LabServer, session_id: str, method: str, path: str, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, server.url + path, headers={"X-Session-ID": session_id, **names}, timeout=90)


def acquire(server: LabServer, session_id: str, topology: str, reuse: bool = True, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        f"{server.url}/lab",
        headers={"X-Session-ID": session_id, **names},
        files={"topology": ("topology.yml", topology)},
        data={"reuse": str(reuse).lower()},
        timeout=90,
    )


def release(server: LabServer, session_id: str, **headers: str) -> httpx.Response:
    return call(server, session_id, "POST", "/lab/release", **headers)


def names(devices: list[dict[str, Any]]) -> list[str]:
    return [device["name"] for device in devices]


def ups(server: LabServer) -> int:
    return len(fake(server).invocations("up"))


def reached(server: LabServer, event: str, phase: str) -> bool:
    return any(line["event"] == event and line.get("phase") == phase for line in fake(server).log())


def start_of_an_acquire(
    server: LabServer, background: ThreadPoolExecutor, session_id: str, topology: str, phase: str = "start"
) -> Future[httpx.Response]:
    """Start an acquire in the background, and wait until netlab has reached a phase."""
    answer = background.submit(acquire, server, session_id, topology)
    wait_until(lambda: reached(server, "phase", phase), 20)
    return answer


# Acquire and release


def test_an_acquired_lab_has_all_data_of_netlab_about_its_devices(server: LabServer, holder: str) -> None:
    answer = acquire(server, holder, ROUTERS)
    assert (answer.status_code, answer.json()["reused"]) == (200, False)
    assert names(answer.json()["devices"]) == ["r1", "r2"]
    raw = answer.json()["devices"][0]["raw"]
    assert {"ansible_user", "ansible_network_os", "mgmt", "loopback", "interfaces"} <= raw.keys()
    assert raw["mgmt"]["ipv4"]


def test_the_devices_are_what_netlab_prints_for_each_of_them(server: LabServer, holder: str) -> None:
    devices = acquire(server, holder, ROUTERS).json()["devices"]
    (work,) = [entry["dir"] for entry in fake(server).instances().values()]
    for device in devices:
        printed = subprocess.run(
            [fake(server).bin / "netlab", "inspect", "--node", device["name"], "--format", "json"],
            cwd=work,
            env=fake(server).environment(),
            capture_output=True,
            check=True,
        )
        assert httpx.Response(200, content=printed.stdout).json() == device["raw"]


def test_the_number_of_netlab_processes_does_not_grow_with_the_devices(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(12))
    assert [argv[0] for argv in fake(server).invocations()] == ["up", "inspect"]


def test_the_status_of_a_lab_has_its_name_state_references_and_digest(server: LabServer, holder: str) -> None:
    server.acquire(holder, ROUTERS, "ospf.yaml")
    answer = lab(server, holder)
    assert answer["devices"] == call(server, holder, "GET", "/lab/devices").json()
    assert names(answer["devices"]) == ["r1", "r2"]
    del answer["devices"]
    assert answer == {
        "running": True,
        "topology": "ospf.yml",
        "ref_count": 1,
        "netlab_status": "started",
        "state": "running",
        "topology_sha256": hashlib.sha256(ROUTERS.encode()).hexdigest(),
        "waiting_for": None,
        "error": None,
    }


def test_calls_without_a_lab_are_refused(server: LabServer, holder: str) -> None:
    answer = lab(server, holder)
    assert (answer["running"], answer["state"], answer["ref_count"], answer["devices"]) == (False, "none", 0, [])
    for method, path in (("GET", "/lab/devices"), ("GET", "/lab/log"), ("POST", "/lab/release")):
        missing = call(server, holder, method, path)
        assert missing.status_code == 404
        assert "no lab is running" in missing.json()["detail"]
    assert call(server, holder, "DELETE", "/lab").status_code == 204


def test_topologies_with_the_same_content_share_a_lab_regardless_of_the_name(server: LabServer, holder: str) -> None:
    first = server.acquire(holder, ROUTERS, "one.yml")
    again = server.acquire(holder, ROUTERS, "two.yml")
    assert (first.json()["reused"], again.json()["reused"]) == (False, True)
    assert first.json()["devices"] == again.json()["devices"]
    assert (lab(server, holder)["ref_count"], lab(server, holder)["topology"]) == (2, "one.yml")
    assert ups(server) == 1
    assert len(server.lab_directories()) == 1


def test_a_lab_lives_until_its_last_reference_is_released(server: LabServer, holder: str) -> None:
    for _ in range(3):
        acquire(server, holder, ROUTERS)
    for left in (2, 1):
        assert release(server, holder).status_code == 204
        assert lab(server, holder)["ref_count"] == left
        assert len(fake(server).containers()) == 2
    assert release(server, holder).status_code == 204
    wait_until(lambda: no_lab(server))
    wait_until(lambda: lab(server, holder)["state"] == "none")
    assert lab(server, holder)["error"] is None
    assert len(fake(server).invocations("down")) == 1


def test_the_last_release_does_not_wait_for_the_teardown(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(1, down_seconds=2))
    assert release(server, holder).status_code == 204
    wait_until(lambda: lab(server, holder)["state"] == "stopping", 1.5)
    assert lab(server, holder)["running"] is False
    assert not server.is_clean()


def test_a_release_without_a_reference_is_refused(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(1, down_seconds=1))
    assert release(server, holder).status_code == 204
    wait_until(lambda: reached(server, "phase", "down"))
    assert release(server, holder).status_code == 404


def test_concurrent_releases_tear_the_lab_down_once(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    acquire(server, holder, topology_text(1, down_seconds=0.3))
    calls = [background.submit(release, server, holder) for _ in range(6)]
    codes = sorted(answer.result().status_code for answer in calls)
    again = acquire(server, holder, topology_text(3))
    assert again.status_code == 200
    assert names(again.json()["devices"]) == ["r1", "r2", "r3"]
    assert (lab(server, holder)["running"], len(fake(server).containers())) == (True, 3)
    assert len(fake(server).invocations("down")) == 1
    assert codes == [204, 404, 404, 404, 404, 404]


def test_a_running_lab_is_busy_for_an_acquire_without_reuse(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS)
    answer = acquire(server, holder, ROUTERS, reuse=False)
    assert answer.status_code == 423
    assert int(answer.headers["Retry-After"]) >= 1
    assert "busy" in answer.json()["detail"]
    assert (lab(server, holder)["ref_count"], len(server.lab_directories())) == (1, 1)


def test_another_topology_is_busy_until_the_first_is_released(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS)
    answer = acquire(server, holder, OTHER)
    assert answer.status_code == 423
    assert int(answer.headers["Retry-After"]) >= 1
    assert (lab(server, holder)["ref_count"], len(server.lab_directories())) == (1, 1)
    release(server, holder)
    assert names(acquire(server, holder, OTHER).json()["devices"]) == ["r1"]


def test_an_acquire_without_reuse_starts_a_new_lab(server: LabServer, holder: str) -> None:
    for _ in range(2):
        answer = acquire(server, holder, ROUTERS, reuse=False)
        assert (answer.status_code, answer.json()["reused"]) == (200, False)
        assert release(server, holder).status_code == 204
    assert ups(server) == 2


def test_an_acquire_waits_for_the_end_of_an_earlier_teardown(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(2, down_seconds=1))
    release(server, holder)
    answer = acquire(server, holder, OTHER)
    assert (answer.status_code, answer.json()["reused"]) == (200, False)
    commands = [(line["argv"][1], line["event"]) for line in fake(server).log() if line["event"] in ("start", "end")]
    assert commands.index(("down", "end")) < commands.index(("up", "start"), 1)


def test_the_next_session_is_active_at_once_and_its_lab_starts_after_the_teardown(
    server: LabServer, holder: str
) -> None:
    waiter = server.join()
    acquire(server, holder, topology_text(2, down_seconds=1))
    httpx.delete(f"{server.url}/session/{holder}")
    assert server.status(waiter)["position"] == 0
    assert lab(server, waiter)["state"] == "none"  # the lab that is being torn down is not its own
    assert names(acquire(server, waiter, OTHER).json()["devices"]) == ["r1"]


def test_the_same_topology_is_never_shared_between_sessions(server: LabServer, holder: str) -> None:
    waiter = server.join()
    acquire(server, holder, ROUTERS)
    httpx.delete(f"{server.url}/session/{holder}")
    answer = acquire(server, waiter, ROUTERS)
    assert (answer.status_code, answer.json()["reused"]) == (200, False)
    assert ups(server) == 2


def test_concurrent_acquires_of_one_topology_start_it_once(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    topology = topology_text(2, start_seconds=0.3)
    answers = [background.submit(acquire, server, holder, topology) for _ in range(6)]
    assert [answer.result().status_code for answer in answers] == [200] * 6
    assert sorted(answer.result().json()["reused"] for answer in answers) == [False] + [True] * 5
    assert (ups(server), lab(server, holder)["ref_count"]) == (1, 6)
    assert len(server.lab_directories()) == 1


def test_other_calls_are_answered_while_netlab_works(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    answer = start_of_an_acquire(server, background, holder, topology_text(2, start_seconds=1.5))
    for path in ("/healthz", "/queue", "/debug/health", "/active-session", "/readyz"):
        assert call(server, holder, "GET", path).is_success
    status = lab(server, holder)
    assert (status["state"], status["running"], status["devices"]) == ("starting", False, [])
    assert call(server, holder, "GET", "/lab/devices").status_code == 404
    assert not answer.done()
    assert answer.result().status_code == 200


# Keys


def test_a_repeated_acquire_with_the_same_key_counts_once(server: LabServer, holder: str) -> None:
    first, again = (acquire(server, holder, ROUTERS, Idempotency_Key="k1") for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["devices"] == again.json()["devices"]
    assert lab(server, holder)["ref_count"] == 1
    acquire(server, holder, ROUTERS, Idempotency_Key="k2")
    assert lab(server, holder)["ref_count"] == 2


def test_concurrent_acquires_with_the_same_key_count_once(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    topology = topology_text(2, start_seconds=0.3)
    answers = [background.submit(acquire, server, holder, topology, Idempotency_Key="k1") for _ in range(5)]
    assert [answer.result().status_code for answer in answers] == [200] * 5
    assert (ups(server), lab(server, holder)["ref_count"]) == (1, 1)


def test_repeated_acquires_of_a_client_that_has_gone_leave_no_files(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    first = background.submit(acquire, server, holder, topology_text(2, start_seconds=1), Idempotency_Key="k1")
    wait_until(lambda: lab(server, holder)["state"] == "starting")
    headers = {"X-Session-ID": holder, "Idempotency-Key": "k1"}
    request = httpx.Request("POST", f"{server.url}/lab", headers=headers, files={"topology": ("t.yml", ROUTERS)})
    fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    sent = f"POST /lab HTTP/1.1\r\n{fields}\r\n".encode() + request.read()
    server.signal(signal.SIGSTOP)  # so that the server receives all of these requests after their clients have gone
    for _ in range(30):
        with socket.create_connection((server.address, server.port)) as connection:
            connection.sendall(sent)
    server.signal(signal.SIGCONT)
    assert first.result().status_code == 200
    wait_until(lambda: len(server.lab_directories()) == 1, message="an upload is left behind")


def test_a_repeated_release_with_the_same_key_counts_once(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS, Idempotency_Key="k1")
    acquire(server, holder, ROUTERS, Idempotency_Key="k2")
    assert [release(server, holder, Idempotency_Key="k1").status_code for _ in range(3)] == [204] * 3
    assert (lab(server, holder)["ref_count"], lab(server, holder)["running"]) == (1, True)
    assert release(server, holder, Idempotency_Key="k2").status_code == 204
    wait_until(lambda: no_lab(server))
    assert release(server, holder, Idempotency_Key="k2").status_code == 204


def test_the_key_of_a_released_acquire_does_not_get_another_lab(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS, Idempotency_Key="k1")
    release(server, holder, Idempotency_Key="k1")
    answer = acquire(server, holder, ROUTERS, Idempotency_Key="k1")
    assert answer.status_code == 422
    assert "Idempotency-Key" in answer.json()["detail"]
    assert ups(server) == 1


def test_a_key_with_an_invalid_length_is_refused_before_anything_starts(server: LabServer, holder: str) -> None:
    for key in ("", "x" * 201):
        assert acquire(server, holder, ROUTERS, Idempotency_Key=key).status_code == 422
        assert release(server, holder, Idempotency_Key=key).status_code == 422
    assert fake(server).invocations() == []


# Asynchronous acquires


def test_an_asynchronous_acquire_returns_at_once_and_its_progress_is_visible(server: LabServer, holder: str) -> None:
    answer = acquire(server, holder, topology_text(2, start_seconds=1), Prefer="respond-async")
    assert (answer.status_code, answer.headers["Location"], answer.content) == (202, "/lab", b"")
    assert lab(server, holder)["running"] is False
    wait_until(lambda: lab(server, holder)["state"] == "running", 20)
    status = lab(server, holder)
    assert (status["ref_count"], names(status["devices"])) == (1, ["r1", "r2"])
    assert release(server, holder).status_code == 204


def test_the_failure_of_an_asynchronous_acquire_is_in_the_status_of_the_lab(server: LabServer, holder: str) -> None:
    assert acquire(server, holder, topology_text(2, fail="config"), Prefer="respond-async").status_code == 202
    wait_until(lambda: lab(server, holder)["error"], 20)
    status = lab(server, holder)
    assert status["state"] == "none"
    assert "netlab initial failed" in status["error"]


def test_an_asynchronous_acquire_of_a_busy_lab_is_refused_like_any_other(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS)
    assert acquire(server, holder, OTHER, Prefer="respond-async").status_code == 423


def test_an_asynchronous_acquire_can_be_repeated_with_its_key(server: LabServer, holder: str) -> None:
    topology = topology_text(2, start_seconds=0.5)
    headers: Any = {"Prefer": "respond-async", "Idempotency_Key": "k1"}
    assert [acquire(server, holder, topology, **headers).status_code for _ in range(3)] == [202] * 3
    wait_until(lambda: lab(server, holder)["state"] == "running", 20)
    assert acquire(server, holder, topology, Idempotency_Key="k1").status_code == 200
    assert (ups(server), lab(server, holder)["ref_count"]) == (1, 1)


# Clients that disconnect


def leave_during(server: LabServer, session_id: str, topology: str, *, reuse: bool = True) -> None:
    """An acquire whose client is killed while netlab starts nodes."""
    script = (
        "import httpx, sys; url, session_id, topology, reuse = sys.argv[1:]; "
        "httpx.post(url + '/lab', headers={'X-Session-ID': session_id}, data={'reuse': reuse}, timeout=60, "
        "files={'topology': ('topology.yml', topology)})"
    )
    words = [sys.executable, "-c", script, server.url, session_id, topology, str(reuse).lower()]
    with subprocess.Popen(words) as client:
        wait_until(lambda: reached(server, "phase", "start"), 20)
        client.kill()


def test_the_lab_of_a_disconnected_client_is_kept_for_the_next_acquire_of_the_session(
    server: LabServer, holder: str
) -> None:
    topology = topology_text(2, start_seconds=0.7)
    leave_during(server, holder, topology)
    wait_until(lambda: lab(server, holder)["state"] == "running", 20)
    assert lab(server, holder)["ref_count"] == 0
    assert acquire(server, holder, topology).status_code == 200
    assert (lab(server, holder)["ref_count"], ups(server)) == (1, 1)


@pytest.mark.parametrize("reuse", [True, False])
def test_an_acquire_joins_a_start_whose_client_has_disconnected(server: LabServer, holder: str, reuse: bool) -> None:
    topology = topology_text(2, start_seconds=0.7)
    leave_during(server, holder, topology, reuse=reuse)
    assert acquire(server, holder, topology, reuse=reuse).status_code == 200
    assert (lab(server, holder)["ref_count"], ups(server)) == (1, 1)


def test_the_lab_of_a_disconnected_client_is_replaced_by_another_topology(server: LabServer, holder: str) -> None:
    leave_during(server, holder, topology_text(2, start_seconds=0.5))
    wait_until(lambda: lab(server, holder)["state"] == "running", 20)
    answer = acquire(server, holder, OTHER)
    assert (answer.status_code, names(answer.json()["devices"])) == (200, ["r1"])
    assert lab(server, holder)["ref_count"] == 1


# Forced teardowns


def test_a_lab_in_use_is_torn_down_only_by_force(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS)
    answer = call(server, holder, "DELETE", "/lab?force=false")
    assert answer.status_code == 409
    assert "in use" in answer.json()["detail"]
    assert lab(server, holder)["running"] is True
    assert call(server, holder, "DELETE", "/lab").status_code == 202
    wait_until(lambda: no_lab(server))
    assert call(server, holder, "DELETE", "/lab").status_code == 204
    assert lab(server, holder)["error"] is None


def test_a_lab_without_references_is_torn_down_without_force(server: LabServer, holder: str) -> None:
    leave_during(server, holder, topology_text(1, start_seconds=0.3))
    wait_until(lambda: lab(server, holder)["state"] == "running", 20)
    assert call(server, holder, "DELETE", "/lab?force=false").status_code == 202
    wait_until(lambda: no_lab(server))


@pytest.mark.parametrize("value", ["maybe", "", "2", "None", "%00", "true,false", "\uff54rue"])
def test_an_invalid_value_of_force_is_refused(server: LabServer, holder: str, value: str) -> None:
    acquire(server, holder, ROUTERS)
    answer = call(server, holder, "DELETE", f"/lab?force={value}")
    assert answer.status_code == 422
    assert "force" in answer.json()["detail"]
    assert lab(server, holder)["running"] is True


@pytest.mark.parametrize("phase", ["create", "start", "config", "inspect"])
def test_a_starting_lab_is_stopped_by_force(
    server: LabServer, holder: str, background: ThreadPoolExecutor, phase: str
) -> None:
    knobs: Any = {f"{phase}_seconds": 3}
    topology = topology_text(2, **knobs)
    answer = start_of_an_acquire(server, background, holder, topology, phase)
    assert call(server, holder, "DELETE", "/lab?force=false").status_code == 409
    assert call(server, holder, "DELETE", "/lab").status_code == 202
    wait_until(lambda: no_lab(server))
    assert 400 <= answer.result().status_code < 500
    assert lab(server, holder)["state"] == "none"


@pytest.mark.parametrize(
    ("phase", "knobs"),
    [
        ("create", {}),
        ("start", {"stubborn": True}),
        ("start", {"hang_child": True}),
        ("config", {"stubborn": True, "hang_child": True}),
    ],
)
def test_a_hanging_start_ends_with_its_session(
    server: LabServer, holder: str, background: ThreadPoolExecutor, phase: str, knobs: dict[str, bool]
) -> None:
    waiter = server.join()
    # in the knobs, not in the topology, because the teardown must not hang too
    fake(server).control(hang=phase, **knobs)
    answer = background.submit(acquire, server, holder, ROUTERS)
    wait_until(lambda: reached(server, "hang", phase), 20)
    hanging = [line["pid"] for line in fake(server).log() if line["event"] == "hang"]
    fake(server).control()
    httpx.delete(f"{server.url}/session/{holder}")
    assert server.status(waiter)["position"] == 0
    assert answer.result().status_code in (404, 423)
    wait_until(lambda: no_lab(server), 20)
    assert not any(is_running(pid) for pid in hanging)
    assert acquire(server, waiter, OTHER).status_code == 200


# Failures of netlab


def test_a_failed_start_reports_netlabs_message_and_leaves_nothing_behind(server: LabServer, holder: str) -> None:
    for phase, words in {"start": "failed deploy stage", "config": "netlab initial failed"}.items():
        answer = acquire(server, holder, topology_text(2, fail=phase))
        assert answer.status_code == 500
        detail = answer.json()["detail"]
        assert "exit status 1" in detail
        assert words in detail
        assert str(server.root) not in detail
        assert no_lab(server)
        assert lab(server, holder)["error"] == detail
    assert acquire(server, holder, ROUTERS).status_code == 200
    assert lab(server, holder)["error"] is None


def test_a_start_that_ends_with_an_exception_shows_no_traceback(server: LabServer, holder: str) -> None:
    answer = acquire(server, holder, topology_text(2, traceback="start"))
    assert answer.status_code == 500
    assert "the fake was told to die in phase start" in answer.json()["detail"]
    assert "Traceback" not in answer.text
    assert "File " not in answer.text
    assert no_lab(server)


def test_a_topology_that_netlab_rejects_is_a_client_error(server: LabServer, holder: str) -> None:
    answer = acquire(server, holder, ROUTERS + "colour: red\n")
    assert answer.status_code == 422
    assert "Invalid topology attribute 'colour'" in answer.json()["detail"]
    assert str(server.root) not in answer.text
    assert no_lab(server)


def test_devices_that_cannot_be_read_fail_the_start(server: LabServer, holder: str) -> None:
    answer = acquire(server, holder, topology_text(2, fail="inspect"))
    assert answer.status_code == 500
    assert no_lab(server)


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with running_server(tmp_path, up_timeout="1", kill_grace="0.2") as server:
        session_id = server.join()
        fake(server).control(hang="start", hang_child=True, stubborn=True)
        answer = acquire(server, session_id, ROUTERS)
        assert answer.status_code == 500
        assert "longer than 1 s" in answer.json()["detail"]
        assert server.is_clean()
        pids = [line["pid"] for line in fake(server).log() if line["event"] == "hang"]
        assert len(pids) == 2
        assert not any(is_running(pid) for pid in pids)


def test_a_failed_start_is_reported_to_all_waiting_acquires(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    topology = topology_text(2, start_seconds=0.5, fail="start")
    answers = [background.submit(acquire, server, holder, topology) for _ in range(3)]
    assert [answer.result().status_code for answer in answers] == [500] * 3
    assert ups(server) == 1


def test_a_failed_acquire_can_be_tried_again_with_its_key(server: LabServer, holder: str) -> None:
    fake(server).control(fail="start", fail_times=1)
    assert acquire(server, holder, ROUTERS, Idempotency_Key="k1").status_code == 500
    assert acquire(server, holder, ROUTERS, Idempotency_Key="k1").status_code == 200


# Log


def test_the_log_is_netlabs_output_without_directories_of_the_host(server: LabServer, holder: str) -> None:
    acquire(server, holder, ROUTERS)
    answer = call(server, holder, "GET", "/lab/log")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    for line in ("Creating configuration files", "Starting clab nodes", "OK: Lab devices configured"):
        assert line in answer.text
    assert str(server.root) not in answer.text


def test_the_log_can_be_read_while_the_lab_starts(
    server: LabServer, holder: str, background: ThreadPoolExecutor
) -> None:
    answer = start_of_an_acquire(server, background, holder, topology_text(2, start_seconds=1.5))
    assert "Starting clab nodes" in call(server, holder, "GET", "/lab/log").text
    assert not answer.done()
    assert answer.result().status_code == 200


def test_a_long_log_is_cut_at_its_beginning(server: LabServer, holder: str, background: ThreadPoolExecutor) -> None:
    fake(server).control(spam_bytes=20 << 20)
    acquired = start_of_an_acquire(server, background, holder, topology_text(1, create_seconds=0.5), "create")
    fake(server).control()
    assert acquired.result().status_code == 200
    answer = call(server, holder, "GET", "/lab/log")
    assert len(answer.content) <= 8 << 20
    assert answer.text.rstrip().endswith("OK: Lab devices configured")


# Teardown


def test_a_teardown_that_leaves_containers_is_retried(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(2, leak_containers=1))
    release(server, holder)
    wait_until(lambda: no_lab(server), 20)
    assert server.status(server.join())["position"] == 1


def test_a_teardown_that_netlab_refuses_is_completed_by_force(server: LabServer, holder: str) -> None:
    acquire(server, holder, topology_text(2, fail="down"))
    release(server, holder)
    wait_until(lambda: no_lab(server), 20)


def test_a_host_with_leftovers_is_quarantined_until_they_can_be_removed(tmp_path: Path) -> None:
    with running_server(tmp_path, quarantine_retry="0.5", teardown_retries="0") as server:
        holder, waiter = server.join(), server.join()
        acquire(server, holder, ROUTERS)
        fake(server).control(leak_containers=1, docker_rm_fails=True)
        httpx.delete(f"{server.url}/session/{holder}")
        ready = f"{server.url}/readyz"
        wait_until(lambda: httpx.get(ready).status_code == 503)
        assert "quarantined" in httpx.get(ready).json()["detail"]
        assert "clab-" in httpx.get(f"{server.url}/queue").json()["quarantined"]
        httpx.delete(f"{server.url}/session/{waiter}")
        late = server.join()
        place = server.status(late)
        assert (place["status"], place["position"]) == ("waiting", 1)
        assert "quarantined" in place["waiting_for"]
        fake(server).control()
        assert server.status(late, wait=30)["status"] == "active"
        wait_until(server.is_clean)
        assert httpx.get(ready).status_code == 200
        assert httpx.get(f"{server.url}/queue").json()["quarantined"] is None
        assert acquire(server, late, OTHER).status_code == 200


def test_foreign_containers_are_not_touched(server: LabServer, holder: str) -> None:
    elsewhere = server.root / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "topology.yml").write_text(topology_text(1, provider="external", name="theirs"))

    def netlab(*words: str) -> None:
        command = [str(fake(server).bin / "netlab"), *words]
        environment = fake(server).environment()
        subprocess.run(command, cwd=elsewhere, env=environment, input=b"y\n", capture_output=True, check=True)

    netlab("up", "topology.yml")
    theirs = set(fake(server).instances())
    try:
        acquire(server, holder, ROUTERS)
        release(server, holder)
        wait_until(lambda: not sql(server.database, "SELECT 1 FROM lab WHERE state <> 'ended'"))
        assert set(fake(server).instances()) == theirs
    finally:
        netlab("down", "--cleanup")
        (fake(server).state / "violations").unlink(missing_ok=True)


# Preloaded netlab


def starters(server: LabServer) -> list[int]:
    """The ids of the processes that ran `netlab up`, in order."""
    return [line["pid"] for line in fake(server).log() if line["event"] == "start" and line["argv"][1] == "up"]


def test_a_lab_is_started_by_the_preloaded_netlab(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        session = server.join()
        used = []
        for text in (topology_text(1), topology_text(2, fail="start"), topology_text(3)):
            wait_until(lambda: len(preloaded_netlabs(server)) == 1)
            used += preloaded_netlabs(server)
            server.acquire(session, text)
            release(server, session)
            wait_until(server.is_clean)
        assert starters(server) == used
        assert len(set(used)) == 3
        [waiting] = preloaded_netlabs(server)
        server.kill()
        wait_until(lambda: not psutil.pid_exists(waiting), 10, "it outlives its server")
        server.start()
        wait_until(lambda: len(preloaded_netlabs(server)) == 1)
        [waiting] = preloaded_netlabs(server)
        assert server.stop() == 0
        assert not psutil.pid_exists(waiting)


def test_preloading_can_be_disabled(tmp_path: Path) -> None:
    server = LabServer(tmp_path, install_fake_netlab(tmp_path / "fake"))
    server.environment["NEOPS_REMOTE_LAB_PRELOAD"] = "false"
    with closing(server):
        server.start()
        session = server.join()
        assert server.acquire(session, topology_text(1)).status_code == 200
        assert preloaded_netlabs(server) == []


def test_the_log_of_a_lab_that_failed_stays_readable_until_the_next_acquire(tmp_path: Path) -> None:
    with running_server(tmp_path, max_failed_logs="2") as server:
        session = server.join()
        with server.client(session) as client:
            assert client.get("/lab/log").status_code == 404
            server.fake.control(fail="start", traceback=False)
            answer = server.acquire(session, topology_text(2))
            assert answer.status_code == 500
            assert answer.json()["detail"].splitlines()[0].endswith("the fake was told to fail")
            assert "Stopping clab nodes" in client.get("/lab/log").text  # the log includes the teardown
            assert "Starting clab nodes" in client.get("/lab/log").text
            streamed = client.get("/lab/log", headers={"Accept": "text/event-stream"}).text
            assert "data: Starting clab nodes" in streamed
            assert "event: end" in streamed
            server.restart()
            assert "Starting clab nodes" in client.get("/lab/log").text
            server.fake.control()
            assert server.acquire(session, topology_text(2)).status_code == 200
            assert "told to fail" not in client.get("/lab/log").text
            client.delete("/lab")
            wait_until(lambda: client.get("/lab/log").status_code == 404, 10, "the lab is not torn down")
        other = server.join()
        with server.client() as client:
            client.delete(f"/session/{session}")
        for nodes in (1, 2, 3):
            assert server.acquire(other, topology_text(nodes, fail="create")).status_code == 422
        assert len(list((server.work_dir / "failed-labs").iterdir())) == 2
        with server.client(other) as client:
            assert "told to reject this topology" in client.get("/lab/log").text
