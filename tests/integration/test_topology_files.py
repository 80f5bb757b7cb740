"""Which files are sent with a topology, and how topologies are distinguished."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from neops_remote_lab.core.identity import identity_of, sha256_of
from neops_remote_lab.core.topology_files import TopologyFiles

WriteFiles = Callable[..., Path]


@pytest.fixture
def write_files(tmp_path: Path) -> WriteFiles:
    """Writes files below a topology's directory, each with its name as its content. Returns the directory."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "lab" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        return tmp_path / "lab"

    make("ring.yml")
    return make


def found(directory: Path, *entries: str | Path) -> list[str]:
    return [file.name for file in TopologyFiles.of(directory / "ring.yml", entries).found()]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], []),
        (["motd.j2"], ["motd.j2"]),
        (["./motd.j2", "templates/../motd.j2"], ["motd.j2"]),
        ([Path("templates")], ["templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["templates/"], ["templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["templates/*.j2"], ["templates/ospf.j2"]),
        (["templates/*"], ["templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["templates/**/*.j2"], ["templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["templates/**"], ["templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["**/fr[pqr].j2"], ["templates/bgp/frr.j2"]),
        (["?otd.j2", "motd.j2"], ["motd.j2"]),
        (["*.yml"], ["other.yml"]),
        (["."], ["motd.j2", "other.yml", "templates/bgp/frr.j2", "templates/ospf.j2"]),
        (["ring.yml"], []),
    ],
)
def test_entries_are_files_directories_and_patterns(
    write_files: WriteFiles, entries: Sequence[str | Path], expected: list[str]
) -> None:
    directory = write_files("motd.j2", "templates/ospf.j2", "templates/bgp/frr.j2", "other.yml")
    assert found(directory, *entries) == expected


def test_an_absolute_path_below_the_topology_is_accepted(write_files: WriteFiles) -> None:
    directory = write_files("templates/ospf.j2")
    assert found(directory, directory / "templates") == ["templates/ospf.j2"]
    assert found(directory, directory / "templates" / "*.j2") == ["templates/ospf.j2"]


def test_a_file_whose_name_looks_like_a_pattern_is_found(write_files: WriteFiles) -> None:
    assert found(write_files("vars[1].yml", "vars1.yml"), "vars[1].yml") == ["vars[1].yml"]


def test_a_directory_without_files_to_send_is_accepted(write_files: WriteFiles) -> None:
    directory = write_files("templates/.gitkeep")
    assert found(directory, "templates") == []


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("nothing.j2", "there is no extra file 'nothing.j2'"),
        ("nothing/*.j2", r"no extra file matches 'nothing/\*\.j2'"),
        ("dangling", "'dangling' is a symbolic link to nothing"),
        (".", "'dangling' is a symbolic link to nothing"),
    ],
)
def test_a_missing_file_is_reported_with_its_name(write_files: WriteFiles, entry: str, message: str) -> None:
    directory = write_files("motd.j2")
    (directory / "dangling").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=message):
        found(directory, entry)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("../elsewhere.j2", "is not in the topology's directory"),
        ("/etc/hosts", "is not in the topology's directory"),
        ("..", "is not in the topology's directory"),
        ("clab.yml", "netlab writes files of that name itself"),
        ("node_files", "netlab writes files of that name itself"),
        ("node_files/r1/frr.cfg", "netlab writes files of that name itself"),
        ("sub/ansible.cfg", "netlab writes files of that name itself"),
        (".netlab.yml", "begins with a dot"),
        (".git", "begins with a dot"),
        ("remote-lab-topology.yml", "is reserved for the topology"),
        ("host_vars/r1", "netlab creates for the variables"),
        ("two\nlines.j2", "control, format and separator"),
        ("pipe", "neither a file nor a directory"),
        ("", "is empty"),
    ],
)
def test_a_name_that_the_lab_host_refuses_is_refused_by_the_client(
    write_files: WriteFiles, entry: str, message: str
) -> None:
    directory = write_files("clab.yml", "node_files/r1/frr.cfg", "sub/ansible.cfg", ".netlab.yml", ".git/config")
    write_files("remote-lab-topology.yml", "host_vars/r1", "two\nlines.j2")
    os.mkfifo(directory / "pipe")
    with pytest.raises(ValueError, match=message):
        found(directory, entry)


def test_two_files_that_differ_in_the_case_of_their_letters_are_refused(write_files: WriteFiles) -> None:
    directory = write_files("motd.j2", "MOTD.j2")
    if len(list(directory.glob("*.j2"))) < 2:
        pytest.skip("this file system ignores case")
    with pytest.raises(ValueError, match="ignores case"):
        found(directory, "*.j2")


def test_one_path_is_not_accepted_as_a_sequence(write_files: WriteFiles) -> None:
    with pytest.raises(TypeError, match=r"such as \['templates'\]"):
        TopologyFiles.of("ring.yml", "templates")


GENERATED = [
    *("clab.yml", "clab-augment.yml", "hosts.yml", "Vagrantfile", "external.txt", "netlab-devices.yml", "ansible.cfg"),
    *("netlab.lock", "netlab.snapshot.pickle", "netlab.snapshot.yml", "node_files/r1/initial", "clab_files/r1/daemons"),
    *("clab-ring/topology.json", "group_vars/all/topology.yml", "host_vars/r1/topology.json"),
    *("graphite/graphite-default.json", "suzieq/suzieq-inventory.yml", "nuts/tests/test_bgp.yaml"),
    *("plugins/__pycache__/vrf.cpython-313.pyc", ".git/config", ".gitignore", ".DS_Store", ".venv/bin/python"),
    *("templates/.ospf.j2.swp", "templates/._ospf.j2"),
]
"""Files that netlab, editors and other tools write."""
SENT = [
    *("group_vars/all.yml", "group_vars/all/users.yml", "host_vars/r1/users.yml", "plugins/vrf.py", "sub/clab.yml"),
    *("sub/hosts.yml", "graphite/icons.yml", "templates/ospf.j2", "clab-notes.md", "test_ring.py"),
]
"""Files of the user."""


def test_files_written_by_netlab_and_other_tools_are_omitted(write_files: WriteFiles) -> None:
    directory = write_files(*GENERATED, *SENT)
    assert sorted(found(directory, ".")) == sorted(SENT)
    assert sorted(found(directory, "**/*")) == sorted(SENT)


# Symbolic links


def test_links_inside_the_directory_are_followed(write_files: WriteFiles) -> None:
    directory = write_files("templates/ospf.j2")
    (directory / "templates" / "isis.j2").symlink_to("ospf.j2")
    (directory / "more").symlink_to("templates", target_is_directory=True)
    (directory / "templates" / "loop").symlink_to(".", target_is_directory=True)
    assert found(directory, "more") == ["more/isis.j2", "more/ospf.j2"]


def test_a_link_out_of_the_directory_is_followed_only_if_it_is_named(write_files: WriteFiles, tmp_path: Path) -> None:
    directory = write_files("templates/ospf.j2")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "motd.j2").write_text("welcome")
    (directory / "templates" / "common").symlink_to(shared, target_is_directory=True)
    (directory / "key").symlink_to("/etc/hostname")
    for entry in (".", "templates", "templates/*/*.j2", "k*"):
        with pytest.raises(ValueError, match="leads out of the topology's directory"):
            found(directory, entry)
    expected = ["templates/common/motd.j2", "templates/ospf.j2"]
    assert found(directory, "templates/common") == expected[:1]
    assert found(directory, "templates", "templates/common") == expected
    assert found(directory, "key") == ["key"]


# Identity


def test_the_identity_depends_on_contents_names_and_modes(write_files: WriteFiles) -> None:
    directory = write_files("start.sh", "motd.j2")
    topology = TopologyFiles.of(directory / "ring.yml", ["*.sh", "motd.j2"])
    plain = topology.identity()
    digests = {name: sha256_of(directory / name) for name in ("motd.j2", "start.sh")}
    assert plain == identity_of(sha256_of(directory / "ring.yml"), digests)
    assert plain == TopologyFiles.of(directory / "ring.yml", ["."]).identity()
    (directory / "start.sh").chmod(0o755)
    executable = topology.identity()
    (directory / "motd.j2").write_text("changed")
    assert len({plain, executable, topology.identity(), TopologyFiles(directory / "ring.yml").identity()}) == 4
