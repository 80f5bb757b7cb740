"""Topologies of more than one file, from a user's directory to the directory in which netlab runs."""

from __future__ import annotations

import stat
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.core.topology_files import TopologyFiles
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, labs_in, running_server

MAX_EXTRA = 48 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    limits = {"max_extra_files": "20", "max_extra_bytes": str(MAX_EXTRA)}
    with running_server(tmp_path_factory.mktemp("server"), **limits) as running:
        yield running


@pytest.fixture
def client(server: LabServer) -> Iterator[RemoteLabClient]:
    with RemoteLabClient(server.url) as joined:
        yield joined
    wait_until(server.is_clean, 20, "something is left of the lab")


@pytest.fixture
def topology(tmp_path: Path) -> Path:
    """A topology with a template, a script and an included file beside it, and files that netlab has written."""
    path = tmp_path / "ring.yml"
    path.write_text(topology_text(1))
    for name in ("templates/bgp/frr.j2", "start.sh", "über/motd.txt", "clab.yml", "node_files/r1/daemons"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "start.sh").chmod(0o700)
    return path


def files_on_the_host(server: LabServer) -> dict[str, str]:
    """Names and contents of the extra files of the only lab. Names of executable files end with a star."""
    [lab] = labs_in(server.work_dir)
    directory = server.work_dir / lab / "lab"
    sent = [path for pattern in ("**/*.j2", "*.sh", "**/motd.txt") for path in directory.glob(pattern)]
    return {
        f"{path.relative_to(directory)}{'*' if path.stat().st_mode & stat.S_IXUSR else ''}": path.read_text()
        for path in sent
    }


EXPECTED = {"templates/bgp/frr.j2": "templates/bgp/frr.j2", "start.sh*": "start.sh", "über/motd.txt": "über/motd.txt"}


def test_extra_files_arrive_with_their_names_and_modes(
    server: LabServer, client: RemoteLabClient, topology: Path
) -> None:
    assert [device.name for device in client.acquire(topology, extra_files=["."])] == ["r1"]
    assert files_on_the_host(server) == EXPECTED
    client.release()


def test_a_lab_is_shared_by_those_who_send_the_same_files(
    server: LabServer, client: RemoteLabClient, topology: Path, tmp_path: Path
) -> None:
    before = len(server.fake.invocations("up"))
    client.acquire(topology, extra_files=[".", "start.sh"])
    client.acquire(topology, extra_files=[tmp_path / "über", "*.sh", "**/*.j2"])
    assert len(server.fake.invocations("up")) == before + 1
    client.lab_acquisition_timeout = 0.1
    with pytest.raises(TimeoutError, match="busy with ring"):
        client.acquire(topology)
    client.destroy()


def test_the_check_of_a_topology_has_its_extra_files(server: LabServer, topology: Path) -> None:
    with RemoteLabClient(server.url) as active:
        wanted = [TopologyFiles.of(topology, ["."])]
        waiting = threading.Thread(
            target=lambda: RemoteLabClient(server.url, topologies=wanted).close(), name="waiting client"
        )
        waiting.start()
        wait_until(lambda: labs_in(server.work_dir) and files_on_the_host(server) == EXPECTED, 20)
        active.close()
        waiting.join()
    wait_until(server.is_clean, 20)


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [(30, 1, "there are more than 20 extra files"), (3, 20 << 20, f"larger than {MAX_EXTRA} bytes")],
)
def test_a_limit_is_reported_with_the_message_of_the_server(
    client: RemoteLabClient, topology: Path, count: int, size: int, message: str
) -> None:
    for number in range(count):
        with topology.with_name(f"file{number}").open("wb") as file:
            file.truncate(size)
    with pytest.raises(httpx.HTTPStatusError, match=message) as refused:
        client.acquire(topology, extra_files=["file*"])
    assert refused.value.response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE


def test_large_files_are_not_held_in_memory(client: RemoteLabClient, topology: Path) -> None:
    for number in range(2):
        with topology.with_name(f"image{number}").open("wb") as file:
            file.truncate(20 << 20)
    tracemalloc.start()
    try:
        client.acquire(topology, extra_files=["image*"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    client.release()
