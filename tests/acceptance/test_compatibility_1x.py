"""Clients of 1.x: the published client, and the calls of users' scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock
from platformdirs import user_cache_path

from tests.chaos.shell import fake, lab, queue, sql
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

OLD_CLIENT = "neops-remote-lab==1.4.0"
OLD_PYTHONS = ("python3.12", "python3.13", "python3.14")
"""The packages of the old client's environment."""
TOPOLOGY = topology_text(2)

SCRIPT = """
import json, sys
from pathlib import Path
from neops_remote_lab.client import RemoteLabClient

def say(**what):
    print(json.dumps(what), flush=True)

def devices(found):
    return [[device.name, sorted(device.raw)] for device in found]

client = RemoteLabClient(sys.argv[1])
for line in sys.stdin:
    word, *arguments = line.split()
    try:
        if word == "acquire":
            say(devices=devices(client.acquire(Path(arguments[0]), reuse=True)))
        else:
            getattr(client, word)()
            say(done=word)
    except Exception as error:
        say(error=type(error).__name__, text=str(error))
"""


def find_python() -> str | None:
    """A Python for the old client, but not a version manager's shim for a version that is not installed."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    directories = [*os.get_exec_path(), *map(str, pyenv.glob("3.*/bin"))]
    candidates = [shutil.which(name, path=directory) for directory in directories for name in OLD_PYTHONS]
    if sys.version_info >= (3, 12):
        candidates.insert(0, sys.executable)
    check = ["-c", "import venv"]
    return next(
        (path for path in candidates if path and not subprocess.call([path, *check], stderr=subprocess.DEVNULL)), None
    )


@pytest.fixture(scope="session")
def old_python() -> Path:
    """The Python of a virtual environment with the old client, which is cached across test runs."""
    directory = user_cache_path("neops-remote-lab-tests") / OLD_CLIENT.replace("==", "-")
    directory.parent.mkdir(parents=True, exist_ok=True)
    found = directory / "bin" / "python"
    with FileLock(f"{directory}.lock"):
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            if (python := find_python()) is None:
                pytest.skip(f"no Python for {OLD_CLIENT}: it needs 3.12 or later")
            for command in (
                [python, "-m", "venv", str(directory)],
                [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", OLD_CLIENT],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
                if done.returncode:
                    shutil.rmtree(directory, ignore_errors=True)
                    pytest.skip(f"{OLD_CLIENT} cannot be installed: {done.stderr.strip()[-300:]}")
            (directory / "complete").touch()
    return found


class OldClient:
    """The old client in a separate process, controlled by commands."""

    def __init__(self, python: Path, server: LabServer, directory: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-E", "-c", SCRIPT, server.url],  # -E ignores PYTHONPATH, which may contain this checkout
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read() if self._process.stderr else ""
        return dict(json.loads(line))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(long_lived: LabServer) -> Iterator[LabServer]:
    (fake(long_lived).state / "log").unlink(missing_ok=True)
    yield long_lived
    fake(long_lived).control()
    while active := httpx.get(f"{long_lived.url}/queue").json()["sessions"]:
        end_by_prefix(long_lived, active[0]["session_id"])
    wait_until(long_lived.is_clean, 20)


def end_by_prefix(server: LabServer, prefix: str) -> None:
    for (session_id,) in sql(server.database, "SELECT session_id FROM session WHERE session_id LIKE ?", f"{prefix}%"):
        httpx.delete(f"{server.url}/session/{session_id}")


@pytest.fixture
def new_client(old_python: Path, server: LabServer, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "topology.yml").write_text(TOPOLOGY)
    (tmp_path / "other.yml").write_text(topology_text(1, name="other"))
    clients: list[OldClient] = []

    def make() -> OldClient:
        clients.append(OldClient(old_python, server, tmp_path))
        return clients[-1]

    yield make
    for client in clients:
        client.stop()


# The client itself


def test_the_old_client_acquires_a_lab_shares_it_and_releases_it(server: LabServer, new_client: Any) -> None:
    client = new_client()
    first = client("acquire", "topology.yml")
    assert [name for name, _ in first["devices"]] == ["r1", "r2"]
    assert "ansible_network_os" in first["devices"][0][1]
    assert client("acquire", "topology.yml") == first
    assert client("release") == {"done": "release"}
    assert len(fake(server).containers()) == 2
    assert client("release") == {"done": "release"}
    wait_until(server.is_clean, 20)
    assert client("close") == {"done": "close"}
    wait_until(lambda: queue(server)["length"] == 0)
    assert len(fake(server).invocations("up")) == 1


def test_the_old_client_gets_another_lab_after_the_first(server: LabServer, new_client: Any) -> None:
    client = new_client()
    for name, devices in (("topology.yml", ["r1", "r2"]), ("other.yml", ["r1"])):
        answer = client("acquire", name)
        assert [device for device, _ in answer["devices"]] == devices
        client("release")
    assert client("close") == {"done": "close"}


def test_the_old_client_tears_a_lab_down_that_is_in_use(server: LabServer, new_client: Any) -> None:
    client = new_client()
    client("acquire", "topology.yml")
    assert client("destroy") == {"done": "destroy"}
    wait_until(server.is_clean, 20)
    assert client("close") == {"done": "close"}


def test_the_old_client_waits_for_its_turn(server: LabServer, new_client: Any) -> None:
    first = new_client()
    first("acquire", "topology.yml")
    second = new_client()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(second, "acquire", "other.yml")
        wait_until(lambda: queue(server)["length"] == 2, 30)
        assert first("close") == {"done": "close"}
        assert [device for device, _ in answer.result(30)["devices"]] == ["r1"]
    assert second("close") == {"done": "close"}
    wait_until(server.is_clean, 20)


def test_the_old_client_survives_a_start_that_fails(server: LabServer, new_client: Any) -> None:
    client = new_client()
    fake(server).control(fail="start", fail_times=1)
    assert "error" in client("acquire", "topology.yml")
    assert "devices" in client("acquire", "topology.yml")
    assert client("close") == {"done": "close"}
    wait_until(server.is_clean, 20)


def test_the_old_client_continues_after_a_restart_of_the_server(
    old_python: Path, tmp_path: Path, new_client: Any
) -> None:
    with running_server(tmp_path / "own") as server:
        client = OldClient(old_python, server, tmp_path)
        try:
            first = client("acquire", "topology.yml")
            server.restart()
            assert client("acquire", "topology.yml") == first
            assert client("release") == client("release") == {"done": "release"}
            assert client("close") == {"done": "close"}
            wait_until(server.is_clean, 20)
        finally:
            client.stop()


# Calls of scripts


def test_the_life_of_a_session_and_its_lab_has_the_old_paths_codes_and_fields(server: LabServer) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as http:
        joined = http.post("/session")
        assert joined.status_code == 201
        assert {"session_id": str, "position": int}.items() <= {k: type(v) for k, v in joined.json().items()}.items()
        headers = {"X-Session-ID": joined.json()["session_id"]}

        place = http.get(f"/session/{headers['X-Session-ID']}")
        assert (place.status_code, place.json()["status"], place.json()["position"]) == (200, "active", 0)
        waiter = http.post("/session").json()
        assert waiter["position"] == 1
        assert http.get(f"/session/{waiter['session_id']}").json()["status"] == "waiting"

        active = http.get("/active-session", headers=headers)
        assert active.status_code == 200
        assert active.json() == {"session_id": headers["X-Session-ID"], "status": "active", "position": 0}
        beat = http.post("/session/heartbeat", headers=headers)
        assert (beat.status_code, beat.content) == (204, b"")

        files = {"topology": ("topology.yml", TOPOLOGY)}
        first = http.post("/lab", headers=headers, files=files, data={"reuse": "true"})
        assert (first.status_code, first.json()["reused"]) == (200, False)
        assert [set(device) for device in first.json()["devices"]] == [{"name", "raw"}] * 2
        assert http.post("/lab", headers=headers, files=files).json()["reused"] is True

        status = http.get("/lab", headers=headers)
        assert status.status_code == 200
        assert {"running", "topology", "ref_count", "devices", "netlab_status"} <= status.json().keys()
        assert (status.json()["running"], status.json()["ref_count"]) == (True, 2)
        assert http.get("/lab/devices", headers=headers).json() == first.json()["devices"]

        released = http.post("/lab/release", headers=headers)
        assert (released.status_code, released.content) == (204, b"")
        assert http.delete("/lab", headers=headers, params={"force": "false"}).status_code == 409
        assert http.delete("/lab", headers=headers).status_code == 202
        wait_until(server.is_clean, 20)
        assert http.delete("/lab", headers=headers).status_code == 204
        assert http.post("/lab/release", headers=headers).status_code == 404

        for session_id in (headers["X-Session-ID"], waiter["session_id"]):
            ended = http.delete(f"/session/{session_id}")
            assert (ended.status_code, ended.content) == (204, b"")
        assert http.get("/active-session").status_code == 404


def test_health_has_the_old_answers(server: LabServer) -> None:
    health = httpx.get(f"{server.url}/healthz")
    assert (health.status_code, health.content) == (204, b"")
    numbers = httpx.get(f"{server.url}/debug/health")
    assert numbers.status_code == 200
    assert {"status", "timestamp", "uptime", "sessions", "queue_length"} <= numbers.json().keys()


def test_a_busy_lab_is_refused_with_the_old_codes(server: LabServer) -> None:
    holder, waiter = server.join(), server.join()
    assert server.acquire(waiter, TOPOLOGY).status_code == 423
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    assert server.acquire(holder, topology_text(1, name="other")).status_code == 423
    assert server.acquire(holder, TOPOLOGY, reuse="false").status_code == 423
    assert server.acquire(holder, TOPOLOGY, "topology.txt").status_code == 400
    assert server.acquire("unknown", TOPOLOGY).status_code == 404
    assert lab(server, holder)["ref_count"] == 1
