"""The server over the real netlab: three FRR routers in containers where the machine has what that needs."""

import json
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.artifacts import unpack
from tests.fakes import REAL_NETLAB_LOCK, wait_until
from tests.server import LabServer, RealNetlab, docker_problem, running_real_server

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUTERS = """\
provider: clab
defaults.device: frr
module: [ospf]
nodes: [r1, r2, r3]
links: [r1-r2, r2-r3, r1-r3]
validate:
  adjacency:
    description: r1 sees r2 as an OSPF neighbor
    wait: 60
    nodes: [r1]
    plugin: ospf_neighbor(nodes.r2.ospf.router_id)
"""
FAILING = """\
import subprocess
from neops_remote_lab.testing.fixture import remote_lab_fixture

ospf = remote_lab_fixture("ospf.yml")


def test_cost(ospf):
    change = ["-c", "configure terminal", "-c", "interface eth1", "-c", "ip ospf cost 4711"]
    subprocess.run(["docker", "exec", ospf[0].raw["ansible_host"], "vtysh", *change], check=True)
    assert not ospf
"""
HALF_WAY = """\
provider: clab
defaults.device: frr
nodes:
  r1:
  r2:
    clab.cmd: /no/such/program
links: [r1-r2]
"""
PAIR = """\
provider: clab
defaults.device: frr
nodes: [r1, r2]
links: [r1-r2]
"""
LAN = """\
provider: clab
defaults.device: frr
nodes: [r1, r2, r3]
links: [r1-r2-r3]
"""
UNMANAGED = """\
provider: clab
defaults.device: frr
nodes:
  r1:
  firewall:
    unmanaged: true
links: [r1-firewall]
"""
HOSTS = """\
provider: external
defaults.device: linux
nodes: [h1, h2]
links: [h1-h2]
"""


def _missing(*programs: str) -> str:
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        return f"this machine lacks {', '.join(absent)}"
    return docker_problem() if "docker" in programs else ""


def _is_installed() -> bool:
    return bool(metadata.entry_points(group="pytest11", name="neops-remote-lab"))


NO_LAB_HOST = _missing("netlab", "docker", "containerlab")
# A server that finds a Docker command checks the host with it before a start, and refuses the start without an answer.
NO_NETLAB = _missing("netlab") or (docker_problem() if shutil.which("docker") else "")
on_lab_host = pytest.mark.skipif(bool(NO_LAB_HOST), reason=NO_LAB_HOST)
with_netlab = pytest.mark.skipif(bool(NO_NETLAB), reason=NO_NETLAB)


@pytest.fixture
def lab_host(tmp_path: Path) -> Iterator[LabServer]:
    with running_real_server(tmp_path) as server:
        yield server
        server.close()
        assert server.netlab.leftovers() == []
        assert server.lab_directories() == []


def _neighbors(device: dict[str, Any]) -> int:
    shown = subprocess.run(
        ["docker", "exec", device["raw"]["ansible_host"], "vtysh", "-c", "show ip ospf neighbor json"],
        check=True,
        capture_output=True,
        text=True,
    )
    neighbors = json.loads(shown.stdout)["neighbors"]
    return sum(peer["nbrState"].startswith("Full") for peers in neighbors.values() for peer in peers)


@pytest.mark.netlab
@on_lab_host
def test_three_routers_start_and_run_ospf(lab_host: LabServer) -> None:
    session = lab_host.join()
    answer = lab_host.acquire(session, ROUTERS, "ospf.yml")
    assert answer.status_code == 200, answer.text
    devices = answer.json()["devices"]
    assert [device["name"] for device in devices] == ["r1", "r2", "r3"]
    wait_until(lambda: all(_neighbors(device) == 2 for device in devices), 60, "no OSPF adjacency")

    again = lab_host.acquire(session, ROUTERS, "same-bytes.yml")
    assert again.json() == {"reused": True, "devices": devices}
    directory = next(lab_host.work_dir.glob("*/lab"))
    validated = subprocess.run(["netlab", "validate"], cwd=directory, capture_output=True, text=True, check=False)
    assert validated.returncode == 0, validated.stdout

    with lab_host.client(session) as client:
        assert client.get("/lab").json()["netlab_status"] == "started"
        assert "OK: Lab devices configured" in client.get("/lab/log").text
        assert client.post("/lab/release").status_code == 204
        assert client.post("/lab/release").status_code == 204
    wait_until(lab_host.is_clean, 60, "the lab is not torn down")


@pytest.mark.netlab
@on_lab_host
def test_artifacts_contain_the_state_of_the_routers(lab_host: LabServer) -> None:
    session = lab_host.join()
    answer = lab_host.acquire(session, ROUTERS, "ospf.yml")
    assert answer.status_code == 200, answer.text
    host = answer.json()["devices"][0]["raw"]["ansible_host"]
    change = ["vtysh", "-c", "configure terminal", "-c", "interface eth1", "-c", "ip ospf cost 4711"]
    subprocess.run(["docker", "exec", host, *change], check=True, capture_output=True)
    with lab_host.client(session) as client:
        answer = client.get("/lab/artifacts")
    files = unpack(answer)
    assert "ip ospf cost 4711" in files["configs/r1.cfg"].decode()
    assert "hostname r3" in files["configs/r3.cfg"].decode()
    assert b"all daemons up" in files["logs/r2.log"]
    assert b"OK: Lab devices configured" in files["netlab.log"]
    assert files["topology/ospf.yml"].decode() == ROUTERS
    assert b'"r1" -- "r2"' in files["graph.dot"]
    assert ("graph.svg" in files) == bool(shutil.which("dot"))
    assert json.loads(files["manifest.json"])["notes"] == []
    everything = b"".join(files.values()).decode()
    assert session not in everything
    assert str(lab_host.root) not in everything


@pytest.mark.netlab
@on_lab_host
def test_users_in_containers_can_read_mounted_files_below_a_private_directory(lab_host: LabServer) -> None:
    answer = lab_host.acquire(lab_host.join(), ROUTERS, "ospf.yml")
    assert answer.status_code == 200, answer.text
    lab = next(path for path in lab_host.work_dir.glob("[!.]*") if path.is_dir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (lab_host.work_dir, lab)] == [0o700, 0o700]
    container = answer.json()["devices"][0]["raw"]["ansible_host"]
    command = ["docker", "exec", "--user", "frr", container, "cat", "/etc/frr/daemons"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "ospfd=yes" in shown.stdout


@pytest.mark.netlab
@on_lab_host
def test_devices_are_the_output_of_netlab_inspect_for_each_node(lab_host: LabServer) -> None:
    session = lab_host.join()
    devices = lab_host.acquire(session, ROUTERS, "ospf.yml").json()["devices"]
    directory = next(lab_host.work_dir.glob("*/lab"))
    for device in devices:
        command = ["netlab", "inspect", "--node", device["name"], "--format", "json"]
        shown = subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True).stdout
        assert device["raw"] == json.loads(shown)


@pytest.mark.netlab
@on_lab_host
@pytest.mark.parametrize("prepared", [False, True], ids=["cold", "prepared"])
def test_a_lab_has_a_name_that_no_other_has(lab_host: LabServer, prepared: bool) -> None:
    text = f"{ROUTERS}name: theirs\n"
    session = lab_host.join()
    if prepared:
        with lab_host.client(session) as client:
            checked = client.post("/topology/check", files={"topology": ("-v.yml", text)})
        assert checked.json() == {"nodes": 3, "links": 3}, checked.text
    answer = lab_host.acquire(session, text, "-v.yml")
    assert answer.status_code == 200, answer.text
    for device in answer.json()["devices"]:
        host = device["raw"]["ansible_host"]
        assert re.fullmatch(f"clab-rl[0-9a-f]{{8}}-{device['name']}", host)
        assert device["raw"]["hostname"] == host
        # As a 1.x consumer logs in: what `raw` names is enough.
        assert device["raw"]["ansible_connection"] == "docker"
        shown = subprocess.run(["docker", "exec", host, "hostname"], check=True, capture_output=True, text=True)
        assert shown.stdout.strip() == device["name"]


@pytest.mark.netlab
@on_lab_host
def test_a_start_that_fails_halfway_leaves_nothing_behind(lab_host: LabServer) -> None:
    session = lab_host.join()
    answer = lab_host.acquire(session, HALF_WAY, "half.yml")
    assert answer.status_code == 500, answer.text
    assert "exit status 1" in answer.json()["detail"]
    assert lab_host.is_clean()
    assert lab_host.acquire(session, ROUTERS, "ospf.yml").status_code == 200


@pytest.mark.netlab
@on_lab_host
def test_the_same_routers_serve_the_session_after_a_kill(lab_host: LabServer) -> None:
    session = lab_host.join()
    devices = lab_host.acquire(session, ROUTERS, "ospf.yml").json()["devices"]
    before = lab_host.netlab.containers()
    assert len(before) == 3
    lab_host.restart()
    with lab_host.client(session) as client:
        assert client.get("/lab/devices").json() == devices
        assert client.get("/lab").json()["ref_count"] == 1
    assert lab_host.netlab.containers() == before


@pytest.mark.netlab
@on_lab_host
def test_a_kill_during_a_start_leaves_a_usable_host(lab_host: LabServer) -> None:
    session = lab_host.join()
    with lab_host.client(session) as client:
        client.post("/lab", files={"topology": ("ospf.yml", ROUTERS)}, headers={"Prefer": "respond-async"})
    wait_until(lambda: len(lab_host.netlab.containers()) > 0, 60, "no router starts")
    lab_host.restart()
    assert lab_host.acquire(session, ROUTERS, "ospf.yml").status_code == 200
    assert len(lab_host.netlab.containers()) == 3


@pytest.mark.netlab
@on_lab_host
def test_two_sessions_get_the_real_lab_one_after_the_other(lab_host: LabServer) -> None:
    first, second = lab_host.join(client="first"), lab_host.join(client="second")
    assert lab_host.acquire(first, ROUTERS, "ospf.yml").status_code == 200
    held: list[dict[str, Any]] = []
    waiter = threading.Thread(target=lambda: held.append(lab_host.status(second, wait=60)))
    waiter.start()
    assert "first holds the lab with ospf.yml" in lab_host.status(second)["waiting_for"]
    with lab_host.client() as client:
        assert client.delete(f"/session/{first}").status_code == 204
    waiter.join(60)
    assert held[0]["status"] == "active"
    assert lab_host.acquire(second, ROUTERS, "ospf.yml").status_code == 200


@pytest.mark.netlab
@on_lab_host
def test_two_pytest_runs_at_once_both_get_their_own_lab(lab_host: LabServer) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "-k", "three_routers"]
    loaded = [] if _is_installed() else ["-p", "neops_remote_lab.testing.plugin"]
    runs = [
        subprocess.Popen(
            [*command, *loaded],
            cwd=EXAMPLES / "ospf",
            env={**lab_host.netlab.environment(), "REMOTE_LAB_URL": lab_host.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [run.communicate(timeout=170)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    waited = [text for text in printed if "position 1 in the queue" in text]
    assert len(waited) == 1
    assert "holds the lab" in waited[0]
    wait_until(lambda: not lab_host.netlab.leftovers(), 60, "the labs are not torn down")


@pytest.mark.netlab
@on_lab_host
def test_a_failed_test_leaves_the_state_of_its_routers(lab_host: LabServer, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "ospf.yml").write_text(ROUTERS)
    (project / "test_cost.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    loaded = [] if _is_installed() else ["-p", "neops_remote_lab.testing.plugin"]
    environment = {**lab_host.netlab.environment(), "REMOTE_LAB_URL": lab_host.url}
    run = subprocess.run([*command, *loaded], cwd=project, env=environment, check=False, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    [lab] = project.glob("remote-lab-artifacts/*/lab-*")
    assert str(lab.relative_to(project)) in run.stdout
    assert "ip ospf cost 4711" in (lab / "configs" / "r1.cfg").read_text()
    assert (lab / "topology" / "ospf.yml").read_text() == ROUTERS
    wait_until(lambda: not lab_host.netlab.leftovers(), 60, "the lab is not torn down")


@pytest.mark.netlab
@on_lab_host
def test_a_lab_started_by_hand_keeps_running(lab_host: LabServer, tmp_path: Path) -> None:
    by_hand = tmp_path / "colleague"
    by_hand.mkdir()
    (by_hand / "topology.yml").write_text(PAIR)
    subprocess.run(["netlab", "up"], cwd=by_hand, check=True, capture_output=True)
    try:
        before = lab_host.netlab.containers()
        assert len(before) == 2
        session = lab_host.join()
        answer = lab_host.acquire(session, PAIR, "colleague.yml")
        assert answer.status_code == 423, answer.text
        assert "somebody else's lab colleague (containers clab-colleague-r1" in answer.json()["detail"]
        lab_host.restart()
        assert lab_host.acquire(session, PAIR, "colleague.yml").status_code == 423
        assert lab_host.netlab.containers() == before
    finally:
        subprocess.run(["netlab", "down", "--cleanup"], cwd=by_hand, check=False, capture_output=True)
    assert lab_host.acquire(session, PAIR, "colleague.yml").status_code == 200


@pytest.mark.netlab
@on_lab_host
def test_a_network_of_the_operator_stays(lab_host: LabServer) -> None:
    name, subnet = "neops-test-operator", "192.168.217.0/24"
    subprocess.run(["docker", "network", "create", f"--subnet={subnet}", name], check=True, capture_output=True)
    try:
        session = lab_host.join()
        topology = PAIR + f"addressing: {{mgmt: {{_network: {name}, ipv4: {subnet}}}}}\n"
        answer = lab_host.acquire(session, topology)
        assert answer.status_code == 200, answer.text
        with lab_host.client(session) as client:
            assert client.post("/lab/release").status_code == 204
        wait_until(lab_host.is_clean, 60, "the lab is not torn down")
    finally:
        removed = subprocess.run(["docker", "network", "rm", name], check=False, capture_output=True, text=True)
    assert removed.returncode == 0, removed.stderr


@pytest.mark.netlab
@on_lab_host
def test_a_teardown_by_force_leaves_no_bridge_and_no_namespace(tmp_path: Path) -> None:
    with running_real_server(tmp_path, down_timeout="0.1", kill_grace="0.1", teardown_retries="1") as server:
        session = server.join()
        answer = server.acquire(session, LAN)
        assert answer.status_code == 200, answer.text
        assert len(server.netlab.system_objects()) == 4
        with server.client(session) as client:
            assert client.post("/lab/release").status_code == 204
            wait_until(lambda: client.get("/lab").json()["state"] == "none", 60, "the lab is not torn down")
            assert client.get("/queue").json()["quarantined"] is None
        assert server.is_clean()


@pytest.mark.netlab
@on_lab_host
def test_a_lab_with_an_unmanaged_node_is_adopted(lab_host: LabServer) -> None:
    session = lab_host.join()
    answer = lab_host.acquire(session, UNMANAGED)
    assert answer.status_code == 200, answer.text
    before = lab_host.netlab.containers()
    lab_host.restart()
    with lab_host.client(session) as client:
        assert client.get("/lab").json()["state"] == "running"
    assert lab_host.netlab.containers() == before


@pytest.mark.external
@with_netlab
def test_netlab_reports_the_path_of_its_list_of_instances(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netlab.yml").write_text(f"lab_status_file: {home}/instances.yaml\n")
    stale = {"default": {"dir": str(tmp_path / "gone"), "status": "started", "providers": ["external"]}}
    with running_real_server(tmp_path, netlab_up_args="--no-config") as server:
        server.close()
        server.environment["HOME"] = str(home)
        server.start()
        session = server.join()
        assert server.acquire(session, HOSTS, "hosts.yml").status_code == 200
        assert (home / "instances.yaml").exists()
        with server.client(session) as client:
            assert client.get("/lab").json()["netlab_status"] == "started"
            assert client.post("/lab/release").status_code == 204
        wait_until(server.is_clean, 60, "the lab is not torn down")
        assert yaml.safe_load((home / "instances.yaml").read_text()) == {}  # with a header if ruamel.yaml is installed
        (home / "instances.yaml").write_text(json.dumps(stale))
        answer = server.acquire(session, PAIR, "pair.yml")
        assert answer.status_code == 423, answer.text
        assert "a directory 'gone' that no longer exists" in answer.json()["detail"]


@pytest.mark.external
@with_netlab
def test_the_external_provider_needs_neither_root_nor_docker(tmp_path: Path) -> None:
    with running_real_server(tmp_path, netlab_up_args="--no-config") as server:
        session = server.join()
        answer = server.acquire(session, HOSTS, "hosts.yml")
        assert answer.status_code == 200, answer.text
        assert [device["name"] for device in answer.json()["devices"]] == ["h1", "h2"]
        assert answer.json()["devices"][0]["raw"]["ansible_user"] == "vagrant"
        server.restart()
        with server.client(session) as client:
            assert client.get("/lab").json()["state"] == "running"
            assert client.post("/lab/release").status_code == 204
        wait_until(server.is_clean, 60, "the lab is not torn down")


@pytest.mark.external
@with_netlab
def test_a_rejected_topology_is_answered_with_netlabs_message(tmp_path: Path) -> None:
    with running_real_server(tmp_path) as server:
        session = server.join()
        answer = server.acquire(session, "provider: clab\nnodes: [a]\n", "broken.yml")
        assert answer.status_code == 422
        assert "No device type specified for node a" in answer.json()["detail"]
        assert str(tmp_path) not in answer.text
        assert server.is_clean()


@pytest.mark.external
@with_netlab
def test_a_prepared_lab_respects_arguments_of_the_operator_and_missing_links(tmp_path: Path) -> None:
    text = "provider: external\nnodes: [h1, h2]\n"  # its device comes from the operator
    with running_real_server(tmp_path, netlab_up_args="-d linux --no-config") as server:
        session = server.join()
        cold = server.acquire(session, text)
        assert cold.status_code == 200, cold.text
        with server.client(session) as client:
            assert client.delete("/lab").status_code == 202
            checked = client.post("/topology/check", files={"topology": ("--set=a.yml", text)})
        assert checked.status_code == 200, checked.text
        assert checked.json() == {"nodes": 2, "links": 0}
        prepared = server.acquire(session, text)
        assert prepared.status_code == 200, prepared.text
        for answer in (cold, prepared):
            assert [device["raw"]["ansible_network_os"] for device in answer.json()["devices"]] == ["linux", "linux"]


@pytest.mark.external
@with_netlab
@pytest.mark.parametrize("defaults", ["devices: [\n", "devices.frr: 3\n", "addressing.loopback.ipv4: nonsense\n"])
def test_an_error_in_the_defaults_of_the_host_is_not_blamed_on_a_topology(tmp_path: Path, defaults: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with FileLock(REAL_NETLAB_LOCK):
        server = LabServer(tmp_path, RealNetlab(), {"containers": "no"}, {"HOME": str(home)})
        try:
            server.start()
            session = server.join()
            with server.client(session) as client:
                assert client.get("/lab").status_code == 200  # the server has checked the host for leftovers
                (home / ".netlab.yml").write_text(defaults)
                assert client.get("/readyz").status_code == 503
                checked = client.post("/topology/check", files={"topology": ("hosts.yml", HOSTS)})
            for answer in (checked, server.acquire(session, HOSTS)):
                assert answer.status_code == 500, answer.text
                assert "the lab host's own netlab defaults are at fault" in answer.json()["detail"]
                assert str(tmp_path) not in answer.text
            (home / ".netlab.yml").write_text("device: frr\n")
            with server.client(session) as client:
                assert client.get("/readyz").status_code == 200
                checked = client.post("/topology/check", files={"topology": ("hosts.yml", HOSTS)})
            assert checked.status_code == 200, checked.text
        finally:
            server.close()
