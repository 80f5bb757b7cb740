"""From a network without a route to the lab: log in to real routers, and run their commands, through the server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import neops_remote_lab
from tests.acceptance.test_real_netlab import ROUTERS, on_lab_host
from tests.fakes import wait_until
from tests.server import LabServer, RealNetlab, running_real_server
from tests.ssh_server import ssh_server

pytestmark = [
    pytest.mark.netlab,
    on_lab_host,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nsenter")),
        reason="making networks needs root, ip and nsenter",
    ),
]

NAMESPACE = f"u{os.getpid()}"
HOST, USER = f"198.19.{os.getpid() % 250}.1", f"198.19.{os.getpid() % 250}.2"
"""Addresses of the two ends of the only link that the user's network has."""
CONFTEST = """
from neops_remote_lab.testing.fixture import remote_lab_fixture

ospf = remote_lab_fixture("ospf.yml", reuse_lab=True, access="forward")
"""
SUITE = """
import errno
import json
import pathlib
import socket
import time

import asyncssh
import netmiko
import pytest


@pytest.fixture
def r1(ospf):
    while not pathlib.Path("ready").exists():  # until r1 has its SSH server
        time.sleep(0.1)
    return next(device.raw for device in ospf if device.name == "r1")


def test_there_is_no_route_to_the_lab(r1):
    with socket.socket() as direct:
        assert direct.connect_ex((r1["mgmt"]["ipv4"], 22)) == errno.ENETUNREACH


async def test_a_login_shows_the_router(r1):
    login = {"username": "root", "password": "admin", "known_hosts": None}
    async with asyncssh.connect(r1["ansible_host"], r1["ansible_port"], **login) as connection:
        assert "hostname r1" in (await connection.run("vtysh -c 'show running-config'")).stdout


def test_netmiko_shows_the_router(r1):
    connection = netmiko.ConnectHandler(
        device_type="linux", host=r1["ansible_host"], port=r1["ansible_port"], username="root", password="admin"
    )
    try:
        assert "FRRouting" in connection.send_command("vtysh -c 'show version'")
    finally:
        connection.disconnect()


def test_an_adjacency_comes_up(ospf, remote_lab_client):
    for _ in range(120):
        result = remote_lab_client.exec("r2", ["vtysh", "-c", "show ip ospf neighbor json"])
        peers = [peer for peers in json.loads(result.stdout)["neighbors"].values() for peer in peers]
        if len(peers) == 2 and all(peer["nbrState"].startswith("Full") for peer in peers):
            return
        time.sleep(0.5)
    pytest.fail("no OSPF adjacency")
"""


@pytest.fixture
def lab_host(tmp_path: Path) -> Iterator[LabServer]:
    with running_real_server(tmp_path, host="0.0.0.0") as server:  # noqa: S104 - a network without users
        yield server


@contextmanager
def network_of_a_user() -> Iterator[list[str]]:
    """A network namespace with one link to this host, and no other route; what starts a program in it."""

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", NAMESPACE, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        ip("addr", "add", f"{HOST}/30", "dev", NAMESPACE)
        ip("link", "set", NAMESPACE, "up")
        ip("-n", NAMESPACE, "addr", "add", f"{USER}/30", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", NAMESPACE, "link", "set", device, "up")
        yield ["ip", "netns", "exec", NAMESPACE]
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, capture_output=True)  # and the link with it


def container_of(node: str) -> str | None:
    """The container of a node that runs; None as long as there is none."""
    words = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=clab-node-name={node}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip() or None


def network_of(container: str) -> list[str]:
    """What starts a program in the network of a container."""
    words = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
    pid = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return ["nsenter", "--net", "--target", pid]


def test_a_suite_passes_without_a_route_to_the_lab(lab_host: LabServer, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name, text in {"ospf.yml": ROUTERS, "conftest.py": CONFTEST, "test_ospf.py": SUITE}.items():
        (project / name).write_text(text)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent),
        "REMOTE_LAB_URL": f"http://{HOST}:{lab_host.port}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    plugins = ["-p", "neops_remote_lab.testing.plugin", "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto"]
    with network_of_a_user() as there:
        command = [*there, sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider"]
        with subprocess.Popen(
            command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                wait_until(lambda: container_of("r1"), 120, "no router comes up")
                r1 = container_of("r1") or ""
                with ssh_server(network_of(r1), ["docker", "exec", "-i", r1]):
                    (project / "ready").touch()
                    output, _ = process.communicate(timeout=150)
            finally:
                process.kill()
    assert process.returncode == 0, output
    assert "4 passed" in output
    wait_until(lambda: not RealNetlab().containers(), 60)
