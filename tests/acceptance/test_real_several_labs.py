"""Several labs at the same time with the real netlab: refused topologies, and labs of three FRR routers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from neops_remote_lab.netlab import ownership
from neops_remote_lab.netlab.failures import SharesHost
from neops_remote_lab.netlab.host_lab import HostLab
from tests.fakes import REAL_NETLAB_LOCK, wait_until
from tests.labs import Labs, killed_server
from tests.server import RealNetlab, docker_problem, running_real_server

NO_NETLAB = "" if shutil.which("netlab") else "netlab is not installed"
NO_LAB_HOST = NO_NETLAB or docker_problem() or ("" if shutil.which("containerlab") else "containerlab is not installed")
with_netlab = pytest.mark.skipif(bool(NO_NETLAB), reason=NO_NETLAB)
on_lab_host = pytest.mark.skipif(bool(NO_LAB_HOST), reason=NO_LAB_HOST)

OSPF = """\
provider: clab
defaults.device: frr
module: [ospf]
nodes: [r1, r2, r3]
ospf.timers: {hello: 1, dead: 10}
links: [r1-r2, r2-r3, r1-r2-r3]
"""
DEAD_SECONDS = 10
LAN = """\
provider: clab
defaults.device: frr
nodes: [r1, r2, r3]
links: [r1-r2-r3]
"""
HEAD = "provider: clab\ndefaults.device: frr\n"
NODES = "nodes: [r1, r2, r3]\n"
LINKS = "links: [r1-r2, r1-r2-r3]\n"
PLUGIN = """\
def post_transform(topology):
    topology.addressing.mgmt._network = "theirs"
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    # Not the default network, so that servers of other tests, which run at the same time, have all numbers.
    return {"work_dir": tmp_path / "labs", "lock_dir": tmp_path / "locks", "lab_network": "10.198.0.0/16"}


@pytest.fixture
def labs(settings: dict[str, Any]) -> Iterator[Labs]:
    with FileLock(REAL_NETLAB_LOCK):
        made = Labs(settings)
        yield made
        made.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        (tmp_path / "topology.yml").write_text(text)
        return tmp_path / "topology.yml"

    return make


# `netlab create` with the real netlab. Nothing is started.


@pytest.mark.external
@with_netlab
@pytest.mark.parametrize(
    "change",
    [
        "name: theirs\naddressing.mgmt: {ipv4: 192.168.200.0/24, _network: theirs, _bridge: theirs, start: 50}",
        "plugin: []\ndefaults.multilab: {id: 7, lock: /tmp/theirs}",
        "defaults.multilab.change: {name: theirs, defaults.name: theirs, addressing.mgmt._network: theirs}",
        "defaults.providers.clab.lab_prefix: ''\ndefaults.lab_status_file: /tmp/theirs.yaml",
    ],
)
def test_forced_settings_override_the_topology(labs: Labs, write: Callable[[str], Path], change: str) -> None:
    workspace = labs.check(write(f"{HEAD}{NODES}{LINKS}{change}\n"))
    written = (workspace.directory / "clab.yml").read_text()
    assert "theirs" not in written
    assert re.findall(r"^ +(rl\w+):$", written, re.MULTILINE) == [f"{workspace.lab_name}_2"]
    assert set(re.findall(r"mgmt-ipv4: ([\d.]+)\.\d+", written)) == {"10.198.1"}


@pytest.mark.external
@with_netlab
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"{NODES}links: [{{r1: , r2: , r3: , bridge: shared0}}]", "links.bridge: the bridge shared0"),
        (f"{NODES}links: [{{r1: , clab.uplink: eth0}}]", "links.clab.uplink: eth0"),
        ("nodes: {r1: {clab.ports: ['8080:80']}}", "nodes.r1.clab.ports, or .*: 8080:80"),
        (f"{NODES}defaults.providers.clab.forwarded.ssh: 2200", "nodes.r1.clab.ports, or .*forwarded: 2201:22"),
        ("nodes: {r1: {clab.network-mode: host}}", "nodes.r1.clab.network-mode: host"),
        ("nodes: {r1: {clab.network-mode: 'container:web'}}", "nodes.r1.clab.network-mode: container:web"),
        ("nodes: {r1: {clab.kind: ext-container}}", "nodes.r1.clab.kind: ext-container"),
        ("nodes: {r1: {clab.kind: bridge}}", "links.bridge: the bridge r1"),
        (f"{NODES}addressing.mgmt.ipv6: 'fd00:77::/64'", "addressing.mgmt.ipv6, or nodes.r1.mgmt.ipv6: fd00:77::65"),
        (f"{NODES}defaults.addressing.mgmt.ipv6: 'fd00:77::/64'", "defaults.addressing.mgmt.ipv6: .*fd00:77::/64"),
        (f"{NODES}tools.edgeshark:", "tools.edgeshark"),
        (f"{NODES}defaults.providers.clab.start: [true]", "defaults.providers.clab.start"),
        (f"{NODES}defaults.providers.clab.config: theirs.yml", "defaults.providers.clab: clab.yml is not"),
        ("nodes: {r1: , v1: {provider: libvirt}}", "provider: libvirt"),
        ("provider: external\nnodes: [h1, h2]", "provider: external"),
    ],
)
def test_a_topology_that_would_share_an_object_is_refused(
    labs: Labs, write: Callable[[str], Path], text: str, key: str
) -> None:
    head = HEAD.replace("provider: clab\n", "") if text.startswith("provider") else HEAD
    with pytest.raises(SharesHost, match=key):
        labs.check(write(f"{head}{text}\n"))


@pytest.mark.external
@with_netlab
def test_a_plugin_beside_the_topology_cannot_share_a_network(labs: Labs, write: Callable[[str], Path]) -> None:
    workspace = labs.upload(write(f"{HEAD}{NODES}plugin: [shared]\n"))
    (workspace.directory / "shared.py").write_text(PLUGIN)
    with pytest.raises(SharesHost, match=r"addressing\.mgmt\._network: .* instead of theirs"):
        labs.start(workspace)
    assert not workspace.base.exists()


# Labs that run


def _vtysh(lab: HostLab, node: str, command: str) -> Any:
    assert lab.held
    container = f"clab-{lab.held.lab_name}-{node}"
    shown = subprocess.run(["docker", "exec", container, "vtysh", "-c", command], check=True, capture_output=True)
    return json.loads(shown.stdout)


def _adjacencies(lab: HostLab) -> dict[tuple[str, str], dict[str, Any]]:
    """Each full adjacency, by router and address of its neighbor."""
    return {
        (node, state["ifaceAddress"]): state
        for node in ("r1", "r2", "r3")
        for states in _vtysh(lab, node, "show ip ospf neighbor detail json")["neighbors"].values()
        for state in states
        if state["nbrState"].startswith("Full")
    }


def _changes(lab: HostLab) -> dict[tuple[str, str], int]:
    """How often each adjacency has changed its state."""
    return {key: state["stateChangeCounter"] for key, state in _adjacencies(lab).items()}


def _is_heard_since(lab: HostLab, moment: float) -> bool:
    """Whether each neighbor has sent a hello since a moment of the monotonic clock."""
    states = _adjacencies(lab).values()
    elapsed = (time.monotonic() - moment) * 1000
    silent = [DEAD_SECONDS * 1000 - state["routerDeadIntervalTimerDueMsec"] for state in states]
    assert min(silent) >= 0
    return bool(max(silent) < elapsed)


@pytest.mark.netlab
@on_lab_host
def test_the_end_of_a_lab_breaks_no_adjacency_of_the_same_topology_beside_it(
    labs: Labs, write: Callable[[str], Path]
) -> None:
    ending, staying = labs.at_once(write(OSPF), write(OSPF))
    for lab in (ending, staying):
        wait_until(lambda lab=lab: len(_adjacencies(lab)) == 10, 90, "no OSPF adjacency")  # type: ignore[misc]
    before = _changes(staying)

    assert ending.tear_down() == []
    moment = time.monotonic()
    wait_until(lambda: _is_heard_since(staying, moment), DEAD_SECONDS, "a neighbor is no longer heard")
    assert _changes(staying) == before
    assert staying.runs()
    assert staying.tear_down() == []
    assert RealNetlab().leftovers() == []


@pytest.mark.netlab
@on_lab_host
def test_an_old_containerlab_waits_until_another_has_finished(labs: Labs, write: Callable[[str], Path]) -> None:
    if (path := labs.host_labs.commands.provider_lock.path) is None:
        pytest.skip("containerlab 0.76 and later need no lock")
    workspace = labs.check(write(LAN))
    with ThreadPoolExecutor() as pool:
        with FileLock(path, thread_local=False):
            starting = pool.submit(labs.start, workspace)
            wait_until(lambda: "executing flock -E 42" in workspace.log.read_text(), 60, "netlab does not start nodes")
            assert RealNetlab().containers() == []
        lab = starting.result(60)
        assert lab.runs()
        before = RealNetlab().containers()
        with FileLock(path, thread_local=False):
            ending = pool.submit(lab.tear_down)
            wait_until(lambda: "containerlab destroy" in workspace.log.read_text(), 60, "netlab does not stop nodes")
            assert RealNetlab().containers() == before
        assert ending.result(60) == []
    assert RealNetlab().leftovers() == []


@pytest.mark.netlab
@on_lab_host
def test_the_labs_of_a_killed_server_are_adopted(
    labs: Labs, settings: dict[str, Any], write: Callable[[str], Path]
) -> None:
    topology = write(OSPF)
    workspaces = killed_server(settings, topology, topology)
    adopting = [labs.new() for _ in workspaces]
    for lab, workspace in zip(adopting, workspaces, strict=True):
        lab.adopt(workspace)
    assert [lab.runs() for lab in adopting] == [True, True]
    assert [ownership.number_of(workspace.base) for workspace in workspaces] == [1, 2]
    assert adopting[0].tear_down() == []
    assert adopting[1].runs()
    assert adopting[0].sweep(labs.host_labs.directories()) == []
    assert adopting[1].runs()
    assert adopting[1].tear_down() == []
    assert RealNetlab().leftovers() == []


@pytest.mark.netlab
@on_lab_host
def test_a_restarted_server_adopts_three_labs(tmp_path: Path) -> None:
    with running_real_server(tmp_path, slots="3") as server:
        sessions = [server.join() for _ in range(3)]
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda session: server.acquire(session, LAN), sessions))
        assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
        before = server.netlab.containers()
        assert len(before) == 9
        server.restart()
        for session, answer in zip(sessions, answers, strict=True):
            with server.client(session) as client:
                assert client.get("/lab/devices").json() == answer.json()["devices"]
        assert server.netlab.containers() == before
        with server.client() as client:
            assert client.delete(f"/session/{sessions[0]}").status_code == 204
        wait_until(lambda: len(server.netlab.containers()) == 6, 60, "the lab is not torn down")
        refused = server.acquire(server.join(), f"{HEAD}{NODES}links: [{{r1: , r2: , r3: , bridge: shared0}}]\n")
        assert refused.status_code == 422, refused.text
        assert "links.bridge: the bridge shared0" in refused.json()["detail"]
        assert len(server.netlab.containers()) == 6
    assert server.is_clean()
