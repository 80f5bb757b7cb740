"""Labs of more than one file on the real netlab, in the shape of netlab's own examples: a directory is all of a lab."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.models import DeviceInfoDto
from tests.acceptance.test_real_netlab import on_lab_host, with_netlab
from tests.fakes import wait_until
from tests.server import LabServer, running_real_server

DIRECTORIES = Path(__file__).parents[1] / "directories"


@contextmanager
def lab_of(name: str, tmp_path: Path, **settings: str) -> Iterator[tuple[LabServer, list[DeviceInfoDto]]]:
    """A server and a copy of a directory that also contains files of an earlier `netlab create`."""
    directory = shutil.copytree(DIRECTORIES / name, tmp_path / name)
    subprocess.run(["netlab", "create", "topology.yml"], cwd=directory, check=True, capture_output=True)
    with running_real_server(tmp_path, **settings) as server, RemoteLabClient(server.url) as client:
        yield server, client.acquire(directory / "topology.yml", extra_files=["."])
        client.release()
        wait_until(server.is_clean, 60, "the lab is not torn down")


@pytest.mark.external
@with_netlab
def test_included_files_plugins_and_templates_are_found(tmp_path: Path) -> None:
    with lab_of("hosts", tmp_path, netlab_up_args="--no-config") as (server, devices):
        assert [(device.name, device.raw["rack"]) for device in devices] == [("h1", 1), ("h2", 2)]
        assert all(device.raw["config"] == ["motd"] for device in devices)
        assert devices[0].raw["interfaces"][0]["ipv4"].startswith("198.51.100.")
        [lab] = server.work_dir.glob("*/lab")
        assert (lab / "node_files/h1/motd").read_text().strip() == 'echo "h1 in rack 1" > /etc/motd'


@pytest.mark.netlab
@on_lab_host
def test_routers_are_configured_and_validated_by_the_files_of_their_directory(tmp_path: Path) -> None:
    with lab_of("bgp", tmp_path) as (server, devices):
        show = ["docker", "exec", devices[0].raw["ansible_host"], "vtysh", "-c", "show running-config"]
        running = subprocess.run(show, check=True, capture_output=True, text=True).stdout
        assert "ip prefix-list OF-65001 seq 5 permit 192.0.2.0/24" in running
        [lab] = server.work_dir.glob("*/lab")
        validated = subprocess.run(["netlab", "validate"], cwd=lab, capture_output=True, text=True, check=False)
        assert validated.returncode == 0, validated.stdout
        assert "there is a session with r2" in validated.stdout
