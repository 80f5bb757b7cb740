"""Access to real routers: behaviour that the fake Docker does not have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.acceptance.test_device_console import ending, open_console, read_until
from tests.acceptance.test_device_tcp import CUT_WITHIN, closed, echo, open_connection, refusal
from tests.acceptance.test_real_netlab import PAIR, ROUTERS, on_lab_host
from tests.device_network import NOTHING, SERVICES, SOURCE
from tests.fakes import wait_until
from tests.server import LabServer, running_real_server

pytestmark = [pytest.mark.netlab, on_lab_host]


@pytest.fixture(scope="module")
def lab_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_real_server(tmp_path_factory.mktemp("host"), kill_grace="1", connect_timeout="2") as server:
        yield server


@pytest.fixture(scope="module")
def joined(lab_host: LabServer) -> str:
    """The active session."""
    return lab_host.join()


def have_lab(server: LabServer, session: str, topology: str) -> None:
    """Acquire a lab of this topology. Another lab is torn down first."""
    answer = server.acquire(session, topology)
    if answer.status_code == 423:
        with server.client(session) as client:
            assert client.delete("/lab").status_code == 202
        answer = server.acquire(session, topology)
    assert answer.status_code == 200, answer.text


@pytest.fixture
def session(lab_host: LabServer, joined: str) -> str:
    """The active session, with a lab of three routers."""
    have_lab(lab_host, joined, ROUTERS)
    return joined


def execute(server: LabServer, session: str, node: str = "r1", **body: Any) -> httpx.Response:
    with server.client(session) as client:
        return client.post(f"/lab/devices/{node}/exec", json=body)


def container_of(server: LabServer, session: str, node: str = "r1") -> str:
    with server.client(session) as client:
        return str(
            next(device["raw"]["hostname"] for device in client.get("/lab/devices").json() if device["name"] == node)
        )


def processes(container: str) -> str:
    """The processes of a container."""
    shown = subprocess.run(
        ["docker", "exec", container, "ps", "-eo", "args"], capture_output=True, text=True, check=True
    )
    return shown.stdout


def test_routers_report_their_neighbors(lab_host: LabServer, session: str) -> None:
    def adjacent() -> bool:
        shown = execute(lab_host, session, command="vtysh -c 'show ip ospf neighbor json'").json()
        neighbors = json.loads(shown["stdout"])["neighbors"].values()
        return [peer["nbrState"].startswith("Full") for peers in neighbors for peer in peers] == [True, True]

    wait_until(adjacent, 60, "no OSPF adjacency")
    shown = execute(lab_host, session, command=["vtysh", "-c", "show ip ospf neighbor"])
    assert shown.json()["exit_status"] == 0
    assert shown.json()["stdout"].count("Full/") == 2


def test_arguments_and_input_reach_a_command_unchanged(lab_host: LabServer, session: str) -> None:
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


def test_a_client_that_disconnects_ends_its_command(lab_host: LabServer, session: str) -> None:
    container = container_of(lab_host, session)
    with lab_host.client(session) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/lab/devices/r1/exec", json={"command": "sleep 1002"}, timeout=httpx.Timeout(10, read=1))
    wait_until(lambda: "1002" not in processes(container), 10, "the command goes on")


def test_background_processes_of_a_command_keep_running(lab_host: LabServer, session: str) -> None:
    container = container_of(lab_host, session)
    assert execute(lab_host, session, command="sleep 1003 >/dev/null 2>&1 &").json()["exit_status"] == 0
    assert "sleep 1003" in processes(container)


# Connections


@contextmanager
def services(container: str) -> Iterator[None]:
    """Start the services of `tests.device_network` in a router."""
    command = ["ip", "netns", "exec", container, sys.executable, "-I", "-c", SERVICES]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def test_a_port_of_a_router_is_reached(lab_host: LabServer, session: str) -> None:
    sent = os.urandom(3_000_000)
    with services(container_of(lab_host, session, "r2")), open_connection(lab_host, session, "r2") as connection:
        received = echo(connection, sent, 65536)
        assert received == sent
    assert refusal(lab_host, session, "r2", NOTHING) == (502, f"r2, TCP port {NOTHING}: connection refused")


def test_a_console_is_what_netlab_connect_runs(lab_host: LabServer, session: str) -> None:
    with open_console(lab_host, session, columns=120, rows=40) as console:
        console.send(b"stty size; echo $0; hostname\n")
        shown = read_until(console, "r1\r\n")
        assert "40 120\r\nbash\r\n" in shown
        console.send(json.dumps({"resize": [90, 30]}))
        time.sleep(0.5)  # Docker forwards the new size asynchronously
        console.send(b"stty size; exit 5\n")
        assert "30 90\r\n" in read_until(console, "30 90")
        assert ending(console) == (5, 1000)


def test_vtysh_works_in_a_console(lab_host: LabServer, session: str) -> None:
    with open_console(lab_host, session, command="vtysh") as console:
        read_until(console, "r1# ")
        console.send(b"show version\n")
        assert "FRRouting" in read_until(console, "r1# ")
        console.send(b"exit\n")
        assert ending(console) == (0, 1000)


@pytest.mark.parametrize("script", ["sleep 1011", "trap '' HUP TERM; sleep 1011 & sleep 1011; sleep 1011"])
def test_a_program_ends_with_its_console(lab_host: LabServer, session: str, script: str) -> None:
    container = container_of(lab_host, session)
    console = open_console(lab_host, session, command=script)
    wait_until(lambda: "sleep 1011" in processes(container), 10, "the command does not begin")
    console.socket.close()
    wait_until(lambda: "1011" not in processes(container), 10, "the program goes on")


def test_a_program_that_prints_to_nobody_ends_with_its_console(lab_host: LabServer, session: str) -> None:
    container = container_of(lab_host, session)
    console = open_console(lab_host, session, command="while :; do echo 1012; done")
    assert console.recv(10)
    time.sleep(0.5)
    console.socket.close()
    wait_until(lambda: "1012" not in processes(container), 10, "the program goes on")


def test_connections_are_closed_with_the_last_reference(lab_host: LabServer, session: str) -> None:
    with lab_host.client(session) as client, services(container_of(lab_host, session)):
        idle, busy = open_connection(lab_host, session), open_connection(lab_host, session, port=SOURCE)
        assert busy.recv(10)
        for _ in range(client.get("/lab").json()["ref_count"]):
            assert client.post("/lab/release").status_code == 204
        began = time.monotonic()
        assert closed(idle, CUT_WITHIN)[0] == 4410
        assert closed(busy, CUT_WITHIN)[0] == 4410
        assert time.monotonic() - began < CUT_WITHIN


def test_a_node_without_a_management_network_is_501(lab_host: LabServer, joined: str) -> None:
    have_lab(lab_host, joined, PAIR.replace("[r1, r2]", "{r1: {}, r2: {clab.network-mode: none}}"))
    assert execute(lab_host, joined, "r2", command="hostname").json()["stdout"] == "r2\n"
    status, detail = refusal(lab_host, joined, "r2")
    assert (status, "r2 has no address in a network created by Docker" in detail) == (501, True)


def test_an_address_of_this_host_is_not_reached_even_if_docker_assigns_it_to_a_node(
    lab_host: LabServer, joined: str
) -> None:
    host, subnet = "198.18.253.7", "198.18.253.0/24"
    subprocess.run(["ip", "addr", "add", f"{host}/32", "dev", "lo"], check=True)
    try:
        with socket.create_server((host, 0)) as listener:
            claims = f"addressing.mgmt: {{_network: neops-test-claims, ipv4: {subnet}, start: 50}}\n"
            nodes = f"{{r1: {{mgmt.ipv4: {host}}}, r2: {{}}}}"
            have_lab(lab_host, joined, claims + PAIR.replace("[r1, r2]", nodes))
            assert refusal(lab_host, joined, "r1", listener.getsockname()[1])[0] in {501, 502, 504}
            listener.settimeout(0.2)
            with pytest.raises(TimeoutError):
                listener.accept()
            with services(container_of(lab_host, joined, "r2")), open_connection(lab_host, joined, "r2") as connection:
                connection.send(b"x")
                assert connection.recv(10) == b"x"
        with lab_host.client(joined) as client:
            client.delete("/lab")
        wait_until(lambda: not lab_host.netlab.leftovers(), 60, "the lab is not torn down")
    finally:
        subprocess.run(["ip", "addr", "del", f"{host}/32", "dev", "lo"], check=True)
