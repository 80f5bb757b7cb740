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

# NAPALM has no driver for FRR or Linux hosts. Its drivers for other systems use netmiko or, for HTTP APIs and NETCONF,
# the forwarded ports that tests/unit/test_reachable.py shows.

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
"""Addresses of the two ends of the only link between the user's network and this host."""
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
import scrapli


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


def test_scrapli_shows_the_router(r1):
    login = scrapli.AuthOptions(username="root", password="admin")
    unknown_host = scrapli.TransportBinOptions(enable_strict_key=False)
    with scrapli.Cli(
        r1["ansible_host"], port=r1["ansible_port"], auth_options=login, transport_options=unknown_host
    ) as connection:
        assert "FRRouting" in connection.send_input("vtysh -c 'show version'").result


def test_an_adjacency_comes_up(ospf, remote_lab_client):
    for _ in range(120):
        result = remote_lab_client.exec("r2", ["vtysh", "-c", "show ip ospf neighbor json"])
        peers = [peer for peers in json.loads(result.stdout)["neighbors"].values() for peer in peers]
        if len(peers) == 2 and all(peer["nbrState"].startswith("Full") for peer in peers):
            return
        time.sleep(0.5)
    pytest.fail("no OSPF adjacency")
"""

NORNIR = """
import os

from nornir import InitNornir
from nornir.core.inventory import ConnectionOptions
from nornir_netmiko import netmiko_send_command

routers = InitNornir(config_file=os.environ["REMOTE_LAB_NORNIR_CONFIG"], logging={"enabled": False}).filter(name="r1")
routers.inventory.hosts["r1"].connection_options["netmiko"] = ConnectionOptions(platform="linux", password="admin")
print(routers.run(netmiko_send_command, command_string="vtysh -c 'show version'")["r1"].result)
"""
SCRIPT = """
until test -e ready; do sleep 0.1; done
python3 with_nornir.py
ansible r1 -m raw -a "vtysh -c 'show version'" -e ansible_password=admin
"""


@pytest.fixture
def lab_host(tmp_path: Path) -> Iterator[LabServer]:
    with running_real_server(tmp_path, host="0.0.0.0") as server:  # noqa: S104 - a network without users
        yield server


@contextmanager
def network_of_a_user() -> Iterator[list[str]]:
    """Create a network namespace with one link to this host and no other route. Yields its command prefix."""

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
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, capture_output=True)  # this removes the link too


def container_of(node: str) -> str | None:
    """The running container of a node; None if there is none."""
    words = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=clab-node-name={node}"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip() or None


def network_of(container: str) -> list[str]:
    """The command prefix that starts a program in the network of a container."""
    words = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
    pid = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return ["nsenter", "--net", "--target", pid]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The directory of a user with a topology."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "ospf.yml").write_text(ROUTERS)
    return directory


def run_in_the_network_of_a_user(command: list[str], project: Path, lab_host: LabServer) -> str:
    """The output of a command, which must succeed. Once r1 has an SSH server, the project has a file `ready`."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent),
        "REMOTE_LAB_URL": f"http://{HOST}:{lab_host.port}",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    with (
        network_of_a_user() as there,
        subprocess.Popen(
            [*there, *command],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            wait_until(lambda: container_of("r1") or process.poll() is not None, 120, "no router comes up")
            r1 = container_of("r1") or ""
            assert r1, process.communicate()[0]
            with ssh_server(network_of(r1), ["docker", "exec", "-i", r1]):
                (project / "ready").touch()
                output, _ = process.communicate(timeout=150)
        finally:
            process.kill()
    assert process.returncode == 0, output
    wait_until(lambda: not RealNetlab().containers(), 60)
    return output


def test_a_suite_passes_without_a_route_to_the_lab(lab_host: LabServer, project: Path) -> None:
    (project / "conftest.py").write_text(CONFTEST)
    (project / "test_ospf.py").write_text(SUITE)
    plugins = ["-p", "neops_remote_lab.testing.plugin", "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto"]
    command = [sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider"]
    assert "5 passed" in run_in_the_network_of_a_user(command, project, lab_host)


def test_the_inventories_of_a_command_lead_to_the_devices(lab_host: LabServer, project: Path) -> None:
    (project / "with_nornir.py").write_text(NORNIR)
    (project / "script.sh").write_text(SCRIPT)
    run = ["-m", "neops_remote_lab", "run", "ospf.yml", "--access", "forward", "--", "sh", "-e", "script.sh"]
    output = run_in_the_network_of_a_user([sys.executable, *run], project, lab_host)
    assert output.count("FRRouting") == 2, output
