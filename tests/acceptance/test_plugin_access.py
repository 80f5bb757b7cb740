"""Test runs and commands that reach the devices of their lab through the server.

The nodes are network namespaces with an SSH server, on a fake Docker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import Shell
from tests.device_network import inside, needs_network, nodes_that_answer, topology
from tests.fakes import wait_until
from tests.plugin import finish, start
from tests.server import LabServer
from tests.ssh_server import PASSWORD, ssh_server

pytestmark = needs_network

CONFTEST = """
from neops_remote_lab.testing.fixture import remote_lab_fixture

lab = remote_lab_fixture("lab.yml", reuse_lab=True{access})
"""
TEST = """
import asyncssh, pathlib, time

def wait_for_nodes():
    while not pathlib.Path("ready").exists():
        time.sleep(0.05)

async def test_a_login(lab):
    wait_for_nodes()
    raw = lab[0].raw
    login = {"username": raw["ansible_user"], "password": "admin", "known_hosts": None}
    async with asyncssh.connect(raw["ansible_host"], raw["ansible_port"], **login) as connection:
        assert (await connection.run("echo $((6 * 7))")).stdout == "42\\n"
    assert raw["remote_lab_original"]["ansible_connection"] == "docker"

def test_the_port_stays_open_for_the_next_test(lab, remote_lab_client):
    with remote_lab_client.forward(lab[0], 22) as other:
        assert other.port != lab[0].raw["ansible_port"]
"""
SHARED = """
import pathlib, pytest, socket, time

@pytest.mark.parametrize("number", range(4))
def test_the_port_answers(lab, number):
    while not pathlib.Path("ready").exists():
        time.sleep(0.05)
    raw = lab[0].raw
    with socket.create_connection((raw["ansible_host"], raw["ansible_port"])) as connection:
        assert connection.recv(4) == b"SSH-"
"""
PLAIN = """
def test_the_variables_of_netlab(lab):
    assert lab[0].raw["ansible_connection"] == "docker"
    assert "ansible_port" not in lab[0].raw
"""


@contextmanager
def nodes(server: LabServer) -> Iterator[None]:
    """Services for the nodes of the running lab, and an SSH server on the first one."""
    with nodes_that_answer(server.fake, 2), ssh_server(inside(1), []):
        yield


@pytest.fixture
def idle(lab_server: LabServer, tmp_path: Path) -> Iterator[Shell]:
    """A shell without a session."""
    shell = Shell(lab_server.url, tmp_path / "user")
    (shell.directory / "lab.yml").write_text(topology(2))
    yield shell
    wait_until(lab_server.is_clean, 20)


@pytest.mark.parametrize(
    ("access", "arguments"),
    [(', access="forward"', []), ("", ["--remote-lab-access=forward"])],
)
def test_a_fixture_leads_to_the_devices(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch, access: str, arguments: list[str]
) -> None:
    write_project(project, access, TEST)
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    process = start(project, "-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto", *arguments)
    wait_until(lambda: len(lab_server.fake.containers()) == 2, 30)
    with nodes(lab_server):
        (project.path / "ready").touch()
        output = finish(process)
    assert "2 passed" in output
    wait_until(lab_server.is_clean, 20)


def test_each_worker_that_shares_a_lab_has_its_own_ports(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(project, ', access="forward"', SHARED)
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    process = start(project, "-p", "xdist", "-n", "2", "--dist", "load")
    wait_until(lambda: len(lab_server.fake.containers()) == 2, 30)
    with nodes(lab_server):
        (project.path / "ready").touch()
        output = finish(process)
    assert "4 passed" in output
    assert len(lab_server.fake.invocations("up")) == 1
    wait_until(lab_server.is_clean, 20)


def test_a_setting_overrides_the_fixture(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(project, ', access="forward"', PLAIN)
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    monkeypatch.setenv("REMOTE_LAB_ACCESS", "direct")
    assert "1 passed" in finish(start(project))
    wait_until(lab_server.is_clean, 20)


def test_an_unknown_access_is_refused(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(project, "", PLAIN)
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    result = project.runpytest_subprocess("--remote-lab-access=vpn")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--remote-lab-access*must be direct or forward*"])
    write_project(project, ', access="vpn"', PLAIN)
    result = project.runpytest_subprocess()
    result.stderr.fnmatch_lines(["*the access to a lab must be one of direct, forward, not 'vpn'*"])


def write_project(project: pytest.Pytester, access: str, test: str) -> None:
    (project.path / "lab.yml").write_text(topology(2))
    project.makeconftest(CONFTEST.replace("{access}", access))
    project.makepyfile(test)


def test_ansible_logs_in_with_the_inventory_of_run(idle: Shell, lab_server: LabServer) -> None:
    waiting = "while [ ! -e ready ]; do sleep 0.05; done"
    program = Path(sys.executable).parent / "ansible"
    ansible = f"{program} r1 -m raw -a 'echo answer $((6 * 7))' -e ansible_password={PASSWORD}"
    with idle.running("run", "lab.yml", "--access", "forward", "--", "sh", "-c", f"{waiting}; {ansible}") as process:
        wait_until(lambda: len(lab_server.fake.containers()) == 2, 30)
        with nodes(lab_server):
            (idle.directory / "ready").touch()
            output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert "answer 42" in output
