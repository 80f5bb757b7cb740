"""Three hosts of one queue with the real netlab: servers with separate homes on this machine, and FRR routers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from filelock import FileLock

from tests.fakes import REAL_NETLAB_LOCK, wait_until
from tests.postgresql import Cluster
from tests.server import LabServer, RealNetlab, by_flag, docker_problem, free_port

NO_LAB_HOST = docker_problem() or next(
    (f"{program} is not installed" for program in ("netlab", "containerlab") if shutil.which(program) is None), ""
)
pytestmark = [pytest.mark.netlab, pytest.mark.skipif(bool(NO_LAB_HOST), reason=NO_LAB_HOST)]

HOSTS = 3
TOPOLOGY = """\
provider: clab
defaults.device: frr
module: [ospf]
nodes: [r1, r2]
ospf.timers: {hello: 1, dead: 10}
links: [r1-r2]
"""


@pytest.fixture
def servers(cluster: Cluster, tmp_path: Path) -> Iterator[list[LabServer]]:
    """A server of each host. The hosts share nothing but the database, the Docker engine and the kernel."""
    with FileLock(REAL_NETLAB_LOCK), cluster.new_database() as database, ExitStack() as ends:
        servers = [_server(tmp_path / f"lab-{number}", number, database) for number in range(1, HOSTS + 1)]
        for server in servers:
            ends.callback(server.close)
            server.launch()
        for server in servers:
            wait_until(server.serves, 60, f"the server does not start: {server.log}")
        wait_until(lambda: all(len(_hosts(server)) == HOSTS for server in servers), 20, "a host is not known")
        yield servers


def _server(root: Path, number: int, database: str) -> LabServer:
    home = root / "home"
    home.mkdir(parents=True)
    if (defaults := Path.home() / ".netlab.yml").exists():
        shutil.copy(defaults, home)
    port = free_port()
    settings = {
        "database": database,
        "lab_host": root.name,
        "advertise": f"http://127.0.0.1:{port}",
        "slots": "2",
        "lab_network": f"10.{200 + number}.0.0/16",
    }
    return LabServer(root, RealNetlab(), by_flag(settings), {"HOME": str(home)}, port=port)


def _hosts(server: LabServer) -> dict[str, str]:
    """The state of each host, as a server reports it."""
    return {host["name"]: host["state"] for host in httpx.get(f"{server.url}/queue").json()["hosts"]}


def _adjacencies(server: LabServer, session_id: str) -> dict[str, int]:
    """The full adjacencies of router r1 of a session's lab, and how often each has changed its state."""
    command = {"command": ["vtysh", "-c", "show ip ospf neighbor detail json"]}
    with server.client(session_id) as client:
        answer = client.post("/lab/devices/r1/exec", json=command)
    assert answer.status_code == 200, answer.text
    neighbors: dict[str, list[dict[str, Any]]] = json.loads(answer.json()["stdout"]).get("neighbors", {})
    states = [state for each in neighbors.values() for state in each if state["nbrState"].startswith("Full")]
    return {state["ifaceAddress"]: state["stateChangeCounter"] for state in states}


def test_hosts_run_labs_of_one_queue_side_by_side(servers: list[LabServer]) -> None:
    entry, crashed, _ = servers  # all clients use the first server
    sessions = [entry.join() for _ in range(HOSTS + 1)]
    assert [entry.status(session)["host"] for session in sessions] == ["lab-1", "lab-2", "lab-3", "lab-1"]

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda session: entry.acquire(session, TOPOLOGY), sessions))
    assert [answer.status_code for answer in answers] == [200] * len(sessions), [answer.text for answer in answers]
    containers = entry.netlab.containers()
    assert len(containers) == 2 * len(sessions)
    for session in sessions:
        wait_until(lambda session=session: _adjacencies(entry, session), 60, "no OSPF adjacency")  # type: ignore[misc]
    before = [_adjacencies(entry, session) for session in sessions]

    crashed.restart()
    with entry.client() as client:
        assert client.delete(f"/session/{sessions[0]}").status_code == 204
    wait_until(lambda: len(entry.netlab.containers()) == len(containers) - 2, 60, "the lab is not torn down")
    assert set(entry.netlab.containers()) < set(containers)
    assert [_adjacencies(entry, session) for session in sessions[1:]] == before[1:]

    with entry.client() as client:
        assert [client.delete(f"/session/{session}").status_code for session in sessions[1:]] == [204] * HOSTS
    wait_until(lambda: all(server.is_clean() for server in servers), 60, "a lab is not torn down")
