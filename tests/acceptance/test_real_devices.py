"""Reaching into real routers: what a fake Docker cannot show."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.acceptance.test_real_netlab import ROUTERS, on_lab_host
from tests.fakes import wait_until
from tests.server import LabServer, running_real_server

pytestmark = [pytest.mark.netlab, on_lab_host]


@pytest.fixture(scope="module")
def lab_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_real_server(tmp_path_factory.mktemp("host"), kill_grace="1") as server:
        yield server


@pytest.fixture(scope="module")
def session(lab_host: LabServer) -> str:
    """The active session, with a lab of three routers."""
    session = lab_host.join()
    answer = lab_host.acquire(session, ROUTERS, "ospf.yml")
    assert answer.status_code == 200, answer.text
    return session


def execute(server: LabServer, session: str, node: str = "r1", **body: Any) -> httpx.Response:
    with server.client(session) as client:
        return client.post(f"/lab/devices/{node}/exec", json=body)


def container_of(server: LabServer, session: str, node: str = "r1") -> str:
    with server.client(session) as client:
        return str(
            next(device["raw"]["hostname"] for device in client.get("/lab/devices").json() if device["name"] == node)
        )


def processes(container: str) -> str:
    """What runs in a container."""
    shown = subprocess.run(
        ["docker", "exec", container, "ps", "-eo", "args"], capture_output=True, text=True, check=True
    )
    return shown.stdout


def test_routers_tell_their_neighbors(lab_host: LabServer, session: str) -> None:
    def adjacent() -> bool:
        shown = execute(lab_host, session, command="vtysh -c 'show ip ospf neighbor json'").json()
        neighbors = json.loads(shown["stdout"])["neighbors"].values()
        return [peer["nbrState"].startswith("Full") for peers in neighbors for peer in peers] == [True, True]

    wait_until(adjacent, 60, "no OSPF adjacency")
    shown = execute(lab_host, session, command=["vtysh", "-c", "show ip ospf neighbor"])
    assert shown.json()["exit_status"] == 0
    assert shown.json()["stdout"].count("Full/") == 2


def test_what_a_command_is_given_reaches_it_as_it_is(lab_host: LabServer, session: str) -> None:
    words = ["printf", "%s|", "--", "--env", "X=1", "", "$HOME", "a b", "é"]
    assert execute(lab_host, session, command=words).json()["stdout"] == "--|--env|X=1||$HOME|a b|é|"
    given = execute(lab_host, session, command="cat >&2; exit 7", stdin="line\n" * 50_000).json()
    assert (given["exit_status"], given["stderr"]) == (7, "line\n" * 50_000)
    missing = execute(lab_host, session, command=["no-such-program"]).json()
    assert (missing["exit_status"], "not found" in missing["stderr"]) == (127, True)


SLOW = {
    "sleeps": "sleep 1001",
    "stubborn": "trap '' TERM; sleep 1001 & sleep 1001",
    "in a session of its own": "setsid sleep 1001 & wait",
    "prints without end": "while :; do echo 1001; done",
}


@pytest.mark.parametrize("command", SLOW.values(), ids=SLOW)
def test_a_command_that_takes_too_long_is_ended_in_the_router(lab_host: LabServer, session: str, command: str) -> None:
    container = container_of(lab_host, session)
    began = time.monotonic()
    assert execute(lab_host, session, command=command, timeout=1).status_code == 408
    assert time.monotonic() - began < 10
    assert "1001" not in processes(container)


def test_a_client_that_goes_away_ends_its_command(lab_host: LabServer, session: str) -> None:
    container = container_of(lab_host, session)
    with lab_host.client(session) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/lab/devices/r1/exec", json={"command": "sleep 1002"}, timeout=httpx.Timeout(10, read=1))
    wait_until(lambda: "1002" not in processes(container), 10, "the command goes on")


def test_what_is_left_in_the_background_goes_on(lab_host: LabServer, session: str) -> None:
    container = container_of(lab_host, session)
    assert execute(lab_host, session, command="sleep 1003 >/dev/null 2>&1 &").json()["exit_status"] == 0
    assert "sleep 1003" in processes(container)
