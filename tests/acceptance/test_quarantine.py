"""A host with leftovers of a lab is quarantined until they are removed; foreign objects are not touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chaos.shell import SQL_TAKES_EFFECT, ask, fake, in_background, is_active, lab, queue, sql
from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import LabServer, abandoned_directory, labs_in, running_server

TOPOLOGY = topology_text(nodes=2)
STUCK = {"leak_containers": 1, "docker_rm_fails": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    """A server that sweeps a quarantined host often."""
    with running_server(tmp_path, quarantine_retry="0.5", teardown_retries="1") as server:
        yield server
        fake(server).control()


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[LabServer]:
    """A server that sweeps a quarantined host less often than any test takes."""
    with running_server(tmp_path, quarantine_retry="600", teardown_retries="0") as server:
        yield server
        fake(server).control()


def readiness(server: LabServer) -> httpx.Response:
    return httpx.get(f"{server.url}/readyz")


def quarantine(server: LabServer, **knobs: object) -> str:
    """Quarantine the host with a failed teardown. Returns a waiting session."""
    holder, waiting = server.join(), server.join()
    answer = server.acquire(holder, TOPOLOGY)
    assert answer.status_code == 200, answer.text
    fake(server).control(**knobs)
    # Released, not ended: the next session becomes active without waiting for a teardown.
    assert ask(server, holder, "POST", "/lab/release").status_code == 204
    wait_until(lambda: queue(server)["quarantined"], 20)
    assert ask(server, holder, "DELETE", f"/session/{holder}").status_code == 204
    return waiting


def is_served(server: LabServer, session_id: str) -> None:
    """Check that a session becomes active and gets a lab."""
    assert server.status(session_id, wait=30)["position"] == 0
    assert readiness(server).status_code == 200
    assert queue(server)["quarantined"] is None
    answer = server.acquire(session_id, TOPOLOGY)
    assert answer.status_code == 200, answer.text
    assert len(fake(server).containers()) == 2
    assert len(server.lab_directories()) == 1
    assert fake(server).violations() == []


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        pytest.param(STUCK, "container clab-", id="a container stays"),
        pytest.param({"docker_unreachable": True}, "Docker daemon", id="nobody can tell"),
        pytest.param({"fail": "down_probe", "docker_rm_fails": True}, "container clab-", id="down does nothing"),
    ],
)
def test_no_session_is_admitted_while_leftovers_exist(server: LabServer, knobs: dict[str, Any], word: str) -> None:
    waiting = quarantine(server, **knobs)
    assert word in queue(server)["quarantined"]
    answer = readiness(server)
    assert answer.status_code == 503
    assert word in answer.json()["detail"]
    assert sql(server.database, "SELECT host FROM quarantine") == [("test-host",)]
    later = server.join()
    for session_id, position in ((waiting, 1), (later, 2)):
        place = server.status(session_id)
        assert (place["status"], place["position"]) == ("waiting", position)
        assert word in place["waiting_for"]
    assert httpx.get(f"{server.url}/healthz").status_code == 204

    with in_background(server.status, waiting, 30) as held:
        fake(server).control()
        assert held.result()["status"] == "active"  # the next sweep has found the host clean
    is_served(server, waiting)


def test_a_quarantine_survives_a_restart_and_ends_with_its_cause(patient: LabServer) -> None:
    waiting = quarantine(patient, **STUCK)
    patient.restart()
    wait_until(lambda: readiness(patient).status_code == 503)
    assert not is_active(patient, waiting)
    patient.kill()
    fake(patient).control()
    patient.start()
    is_served(patient, waiting)


def test_an_operator_lifts_a_quarantine(patient: LabServer) -> None:
    waiting = quarantine(patient, **STUCK)
    fake(patient).control()
    with in_background(patient.status, waiting, 30) as held:
        sql(patient.database, "UPDATE lab_host SET quarantine_reason = NULL")
        assert held.result(SQL_TAKES_EFFECT)["status"] == "active"
    is_served(patient, waiting)


def test_a_quarantine_that_is_lifted_too_early_is_set_again(patient: LabServer) -> None:
    waiting = quarantine(patient, **STUCK)
    sql(patient.database, "UPDATE lab_host SET quarantine_reason = NULL")
    wait_until(lambda: is_active(patient, waiting))
    wait_until(lambda: readiness(patient).status_code == 503)
    answer = patient.acquire(waiting, TOPOLOGY)
    assert answer.status_code == 423
    assert "quarantined" in answer.json()["detail"]
    assert "Retry-After" in answer.headers
    assert fake(patient).violations() == []
    fake(patient).control()
    sql(patient.database, "UPDATE lab_host SET quarantine_reason = NULL")
    wait_until(lambda: readiness(patient).status_code == 200)
    wait_until(lambda: patient.acquire(waiting, TOPOLOGY).status_code == 200)
    assert fake(patient).violations() == []


def test_no_lab_is_started_beside_leftovers_of_an_earlier_server(patient: LabServer) -> None:
    holder = patient.join()
    assert patient.acquire(holder, TOPOLOGY).status_code == 200
    patient.kill()
    # The database does not have the lab, and its container cannot be removed.
    sql(patient.database, "DELETE FROM lab")
    fake(patient).control(**STUCK)
    patient.start()
    wait_until(lambda: readiness(patient).status_code == 503)
    answer = patient.acquire(holder, TOPOLOGY)
    assert answer.status_code == 423
    assert "quarantined" in answer.json()["detail"]
    assert fake(patient).violations() == []
    fake(patient).control()
    sql(patient.database, "UPDATE lab_host SET quarantine_reason = NULL")
    wait_until(lambda: readiness(patient).status_code == 200)
    wait_until(lambda: patient.acquire(holder, TOPOLOGY).status_code == 200)
    assert len(patient.lab_directories()) == 1
    assert fake(patient).violations() == []


def test_directories_that_could_not_be_swept_at_the_start_are_swept_later(server: LabServer) -> None:
    server.kill()
    directory = abandoned_directory(server.work_dir, "left-by-a-crash") / "topology"
    directory.mkdir()
    (directory / "clab.yml").write_text("name: topology\n")  # so it may have had containers
    fake(server).control(docker_unreachable=True)
    server.start()
    wait_until(lambda: readiness(server).status_code == 503)
    fake(server).control()
    wait_until(lambda: readiness(server).status_code == 200)
    wait_until(lambda: server.lab_directories() == [])


def test_a_quarantined_host_estimates_no_wait(server: LabServer) -> None:
    for _ in range(2):  # without history there is no estimate
        httpx.delete(f"{server.url}/session/{server.join()}")
    server.join()
    waiting = server.join()
    assert server.status(waiting)["eta_seconds"] is not None
    sql(server.database, "UPDATE lab_host SET quarantine_reason = 'a new image is being built'")
    wait_until(lambda: queue(server)["quarantined"])
    assert server.status(waiting)["eta_seconds"] is None


def test_a_quarantine_set_with_sql_is_lifted_only_with_sql(server: LabServer) -> None:
    sql(server.database, "UPDATE lab_host SET quarantine_reason = 'a new image is being built'")
    wait_until(lambda: queue(server)["quarantined"])
    waiting = server.join()
    server.restart()
    assert "new image" in str(server.status(waiting)["waiting_for"])
    sql(server.database, "UPDATE lab_host SET quarantine_reason = NULL")
    is_served(server, waiting)


# Leftovers of our labs, and foreign objects


class ForeignLab:
    """A foreign lab on the same host."""

    def __init__(self, host: FakeNetlab, directory: Path) -> None:
        self.host, self.directory = host, directory
        directory.mkdir(parents=True)
        for name, topology_file in (
            ("clab-theirs-r1", directory / "clab.yml"),
            ("clab-mine-r1", Path("/srv/clab.yml")),
        ):
            self._write_container(name, topology_file)
        network = {"name": "their_network", "id": "b" * 64, "created": 1.0, "driver": "bridge"}
        (host.state / "networks" / "their_network").write_text(json.dumps(network))
        instances = {**host.instances(), "theirs": {"dir": str(directory), "status": "started", "providers": ["clab"]}}
        (host.home / ".netlab").mkdir(exist_ok=True)
        (host.home / ".netlab" / "status.yaml").write_text(yaml.safe_dump(instances))
        self.before = self.objects()

    def _write_container(self, name: str, topology_file: Path) -> None:
        full_id = name.encode().hex().ljust(64, "0")
        labels = {"containerlab": name.split("-")[1], "clab-node-name": "r1", "clab-topo-file": str(topology_file)}
        container = {
            "id": full_id[:12],
            "full_id": full_id,
            "name": name,
            "image": "theirs",
            "created": 1.0,
            "network": "their_network",
            "ipv4": "192.0.2.1",
            "labels": labels,
        }
        (self.host.state / "containers" / f"{name}.json").write_text(json.dumps(container))

    def objects(self) -> list[str]:
        return sorted(
            [
                *(str(container) for container in self.host.containers() if container["image"] == "theirs"),
                *(str(network) for network in self.host.networks() if network["name"] == "their_network"),
                *(str(entry) for name, entry in self.host.instances().items() if name == "theirs"),
            ]
        )


def test_foreign_containers_are_not_touched(server: LabServer) -> None:
    holder = server.join()
    # A directory beside the work directory whose name begins with that of the work directory.
    foreign = ForeignLab(fake(server), server.work_dir.with_name("labs-of-others") / "one")
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    assert ask(server, holder, "POST", "/lab/release").status_code == 204
    wait_until(lambda: lab(server, holder)["state"] == "none")
    assert foreign.objects() == foreign.before

    assert server.acquire(holder, TOPOLOGY).status_code == 200
    server.kill()
    sql(server.database, "DELETE FROM lab")
    server.start()
    wait_until(lambda: not server.lab_directories())
    assert foreign.objects() == foreign.before
    assert [entry["dir"] for entry in fake(server).instances().values()] == [str(foreign.directory)]
    assert {container["image"] for container in fake(server).containers()} == {"theirs"}
    assert readiness(server).status_code == 200
    assert foreign.directory.is_dir()


def test_a_start_sweeps_the_leftovers_of_crashes(server: LabServer) -> None:
    holder = server.join()
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    server.kill()
    sql(server.database, "DELETE FROM lab")
    upload = abandoned_directory(server.work_dir, "upload-of-a-crash") / "upload"
    upload.mkdir()
    (upload / "topology.yml").write_text(TOPOLOGY)
    server.start()
    wait_until(server.is_clean, 20)
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    assert fake(server).violations() == []


def test_a_container_whose_directory_is_gone_is_swept(server: LabServer) -> None:
    import shutil

    holder = server.join()
    assert server.acquire(holder, TOPOLOGY).status_code == 200
    server.kill()
    shutil.rmtree(server.work_dir)
    sql(server.database, "DELETE FROM lab")
    server.start()
    # Its baseline is gone too, so the network may be foreign.
    wait_until(lambda: not fake(server).containers() and not fake(server).instances(), 20)
    assert server.acquire(holder, TOPOLOGY).status_code == 200


def test_labs_are_found_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    settings = {"work_dir": str(tmp_path / "link"), "quarantine_retry": "0.5", "teardown_retries": "0"}
    with running_server(tmp_path / "server", **settings) as server:
        waiting = quarantine(server, **STUCK)
        assert "container" in queue(server)["quarantined"]
        fake(server).control()
        assert server.status(waiting, wait=30)["position"] == 0
        assert fake(server).is_clean()
        assert labs_in(tmp_path / "real") == []


@pytest.mark.parametrize(("containers", "ready"), [("no", 200), ("auto", 503)])
def test_a_host_whose_docker_does_not_run_can_have_labs_without_containers(
    tmp_path: Path, containers: str, ready: int
) -> None:
    with running_server(tmp_path, containers=containers) as server:
        fake(server).control(docker_unreachable=True)
        session = server.join()
        assert server.acquire(session, topology_text(2, provider="external")).status_code == 200
        assert ask(server, session, "POST", "/lab/release").status_code == 204
        wait_until(server.is_clean, 10, "the lab is not torn down")
        wait_until(lambda: lab(server, session)["state"] == "none", 10, "its end is not written down")
        assert queue(server)["quarantined"] is None
        assert readiness(server).status_code == ready  # `--containers` sets whether the host needs Docker
