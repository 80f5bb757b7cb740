"""Files that the real netlab writes beside a topology must not be uploaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from neops_remote_lab.api.settings import UploadSettings
from neops_remote_lab.core.file_names import extra_file_name
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.netlab.yaml_check import check_topology

NETLAB = shutil.which("netlab")

pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(NETLAB is None, reason="needs the real netlab"),
]

TOPOLOGY = "provider: {provider}\ndefaults.device: frr\nname: lab\nnodes: [r1, r2]\nlinks: [r1-r2]\n"


def create(directory: Path, provider: str = "clab", more: str = "") -> subprocess.CompletedProcess[str]:
    """Run `netlab create`, which writes only into the directory."""
    (directory / "lab.yml").write_text(TOPOLOGY.format(provider=provider) + more)
    home = directory.with_name("home")
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [str(NETLAB), "create", "lab.yml"],
        cwd=directory,
        env={**os.environ, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "lab"
    made.mkdir()
    return made


@pytest.mark.parametrize("provider", ["clab", "libvirt", "external"])
def test_every_name_of_a_file_that_netlab_creates_is_refused(directory: Path, provider: str) -> None:
    done = create(directory, provider)
    assert done.returncode == 0, done.stderr
    made = {path.name for path in directory.iterdir()} - {"lab.yml"}
    assert made
    for name in made:
        with pytest.raises(ValueError, match="file name"):
            extra_file_name(name)
    for path in directory.glob("*_vars/*/*"):
        with pytest.raises(ValueError, match="netlab writes itself"):
            extra_file_name(str(path.relative_to(directory)))
    assert TopologyFiles.of(directory / "lab.yml", ["."]).found() == []


def test_files_that_netlab_writes_for_its_tools_are_omitted(directory: Path) -> None:
    done = create(directory, more="tools: {graphite: , nuts: , suzieq: }\n")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in directory.iterdir()} > {"graphite", "nuts", "suzieq"}
    assert TopologyFiles.of(directory / "lab.yml", ["."]).found() == []


def test_netlab_keeps_the_variables_of_a_user(directory: Path) -> None:
    names = ["host_vars/r1/users.yml", "host_vars/r2.yml", "group_vars/all.yml"]
    for name in names:
        extra_file_name(name)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("a: 1\n")
    done = create(directory)
    assert done.returncode == 0, done.stderr
    assert [(directory / name).read_text() for name in names] == ["a: 1\n"] * 3


def test_a_file_with_the_name_of_a_node_is_refused(directory: Path) -> None:
    (directory / "host_vars").mkdir()
    (directory / "host_vars/r1").write_text("a: 1\n")
    assert create(directory).returncode != 0


def test_every_mapping_that_netlab_ships_is_within_the_limits() -> None:
    netsim = pytest.importorskip("netsim")
    files = list(Path(netsim.__path__[0]).rglob("*.yml"))
    assert files
    for path in files:
        try:
            check_topology(path.read_bytes(), max_nodes=UploadSettings().max_yaml_nodes)
        except ValueError as error:
            assert "must be a YAML mapping" in str(error), path  # noqa: PT017 - Ansible's lists of tasks
