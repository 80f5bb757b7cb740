"""Reaching devices through the server, from Python and from a shell, as users do.

The nodes are network namespaces with an SSH server, on a fake Docker.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import asyncssh
import netmiko
import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.client.reachable import reachable
from tests.commands import Shell
from tests.device_network import (
    ECHO,
    GREETING,
    LATE,
    NOTHING,
    inside,
    needs_network,
    nodes_that_answer,
    topology,
)
from tests.fakes import wait_until
from tests.server import LabServer, running_server
from tests.ssh_server import PASSWORD, USER, ssh_server

pytestmark = needs_network


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(tmp_path_factory.mktemp("server"), connect_timeout="0.5") as running:
        yield running


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


@pytest.fixture(scope="module")
def client(server: LabServer, reports: list[str]) -> Iterator[RemoteLabClient]:
    """A session whose lab has nodes with services."""
    path = server.root / "lab.yml"
    path.write_text(topology(2))
    with RemoteLabClient(server.url, on_trouble=reports.append) as client:
        client.acquire(path)
        with nodes_that_answer(server.fake, 2), ssh_server(inside(1), []):
            yield client
    wait_until(server.is_clean, 20)


@pytest.fixture
def shell(server: LabServer, client: RemoteLabClient, tmp_path: Path) -> Shell:
    """A shell as `neops-remote-lab run` starts it in that session."""
    return Shell(server.url, tmp_path / "user", {"REMOTE_LAB_SESSION_ID": client.session_id})


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


# From Python


def test_a_port_of_a_device_is_reached(client: RemoteLabClient) -> None:
    with client.forward("r1", GREETING) as forward, socket.create_connection((forward.host, forward.port)) as peer:
        assert read_all(peer) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((forward.host, forward.port))


def test_each_direction_can_be_closed_separately(client: RemoteLabClient) -> None:
    with client.forward("r2", LATE) as forward, socket.create_connection((forward.host, forward.port)) as peer:
        peer.sendall(b"all of it")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"heard all of it"


def test_megabytes_are_transferred_in_both_directions(client: RemoteLabClient) -> None:
    data = bytes(range(256)) * 20_000
    with client.forward("r1", ECHO) as forward, ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection((forward.host, forward.port))) for _ in range(3)]
        for peer in peers:
            peer.sendall(data[:1000])
        for peer in peers:
            assert peer.recv(1000, socket.MSG_WAITALL) == data[:1000]
        received = bytearray()
        for offset in range(0, len(data), 100_000):
            piece = data[offset : offset + 100_000]
            peers[0].sendall(piece)
            received += peers[0].recv(len(piece), socket.MSG_WAITALL)
    assert received == data


def test_a_refused_connection_is_reported(client: RemoteLabClient, reports: list[str]) -> None:
    reports.clear()
    with client.forward("r1", NOTHING) as forward, socket.create_connection((forward.host, forward.port)) as peer:
        with pytest.raises(ConnectionResetError):
            read_all(peer)
        wait_until(lambda: reports)
    assert f"r1:{NOTHING}: " in reports[0]
    assert "502" in reports[0]


def test_an_unknown_device_is_refused_at_once(client: RemoteLabClient) -> None:
    with pytest.raises(LookupError, match="the lab has no device 'r9': it has r1, r2"):
        client.forward("r9", 22)
    with pytest.raises(ValueError, match="from 1 to 65535"):
        client.forward("r1", 0)


async def test_asyncssh_logs_in(client: RemoteLabClient) -> None:
    devices = client.devices()
    with reachable(devices, client.forward) as through:
        raw = through[0].raw
        login = {"username": USER, "password": PASSWORD, "known_hosts": None}
        async with asyncssh.connect(raw["ansible_host"], raw["ansible_port"], **login) as connection:
            assert (await connection.run("echo $((6 * 7))")).stdout == "42\n"


def test_netmiko_logs_in(client: RemoteLabClient) -> None:
    with reachable(client.devices(), client.forward) as through:
        raw = through[0].raw
        connection = netmiko.ConnectHandler(
            device_type="linux", host=raw["ansible_host"], port=raw["ansible_port"], username=USER, password=PASSWORD
        )
        try:
            assert str(connection.send_command("echo $((6 * 7))")).strip() == "42"
        finally:
            connection.disconnect()


# From the shell


def test_a_port_is_forwarded_until_ctrl_c(shell: Shell) -> None:
    with shell.running("forward", f"r1:{GREETING}") as process:
        assert process.stdout
        host, _, port = process.stdout.readline().strip().rpartition(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as peer:
                assert read_all(peer) == b"hello"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT


def test_standard_input_and_output_can_be_one_connection(shell: Shell) -> None:
    words = shell.command("forward", f"r1:{LATE}", "-")
    done = subprocess.run(words, env=shell.environment, input=b"\x00\xff", capture_output=True, check=True)
    assert done.stdout == b"heard \x00\xff"
    done = subprocess.run(
        shell.command("forward", f"r1:{NOTHING}", "-"),
        env=shell.environment,
        input=b"",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [["r1"], ["r1:0"], ["r1:ssh"], [":22"], ["r1:22", "x"], ["r1:22", "1:65536"]])
def test_invalid_arguments_of_forward_end_with_status_2(shell: Shell, arguments: list[str]) -> None:
    assert shell.run("forward", *arguments).returncode == 2


def askpass(shell: Shell) -> dict[str, str]:
    """Variables with which ssh gets the password from a program."""
    program = shell.directory / "askpass"
    program.write_text(f"#!/bin/sh\necho {PASSWORD}\n")
    program.chmod(0o700)
    return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}


def test_ssh_logs_in_as_the_user_of_the_inventory(shell: Shell) -> None:
    done = shell.run("ssh", "r1", "--", "echo $((6 * 7)); exit 3", **askpass(shell))
    assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "")
    assert shell.run("ssh", "r9").returncode == 125


def test_a_proxy_command_of_ssh_leads_to_a_node(shell: Shell) -> None:
    proxy = f"{sys.executable} -m neops_remote_lab forward %h:%p -"
    options = ["ProxyCommand=" + proxy, "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    words = ["ssh", *(word for option in options for word in ("-o", option)), f"{USER}@r1", "echo $((6 * 7))"]
    environment = shell.environment | askpass(shell)
    done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
