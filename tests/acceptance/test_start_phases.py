"""A client reports the phases of netlab while its lab starts."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.client.start_phases import TEARDOWN
from tests.fakes import topology_text
from tests.server import LabServer


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    path = tmp_path / "ring.yml"
    path.write_text(topology_text(nodes=1))
    return path


def phase_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "remote-lab-phases"]


def test_the_phases_of_a_start_are_reported_as_they_begin(lab_server: LabServer, topology: Path) -> None:
    lab_server.fake.control(start_seconds=2, config_seconds=1.5)
    phases: list[tuple[float, str]] = []
    with RemoteLabClient(lab_server.url, on_phase=lambda phase: phases.append((time.monotonic(), phase))) as client:
        client.acquire(topology)
        ended = time.monotonic()
        assert phase_threads() == []
    times = {phase: at for at, phase in phases}
    assert times["starting clab nodes"] + 0.5 < times["deploying initial device configurations"]
    assert times["deploying initial device configurations"] + 0.5 < ended


def test_an_acquire_that_shares_a_lab_has_no_phases(lab_server: LabServer, topology: Path) -> None:
    phases: list[str] = []
    with RemoteLabClient(lab_server.url, on_phase=phases.append) as client:
        client.acquire(topology)
        client.acquire(topology)
    assert phases == []


def test_the_teardown_of_an_earlier_lab_is_a_phase(lab_server: LabServer, topology: Path) -> None:
    lab_server.fake.control(down_seconds=2.5)
    phases: list[str] = []
    with RemoteLabClient(lab_server.url, on_phase=phases.append) as client:
        client.acquire(topology)
        client.release()
        client.acquire(topology, reuse=False)
    assert phases[:1] == [TEARDOWN]


def test_no_phases_are_reported_after_a_failure(lab_server: LabServer, topology: Path) -> None:
    lab_server.fake.control(fail="config", start_seconds=1.5)
    phases: list[str] = []
    with RemoteLabClient(lab_server.url, on_phase=phases.append) as client:
        with pytest.raises(Exception, match="netlab"):
            client.acquire(topology)
        assert phase_threads() == []
    assert "starting clab nodes" in phases
