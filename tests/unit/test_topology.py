"""Names of uploaded files, and contents that are refused before netlab runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neops_remote_lab.api.settings import UploadSettings
from neops_remote_lab.core.file_names import collision, extra_file_name, relative_name, topology_name
from neops_remote_lab.core.reserved_names import is_ignored
from neops_remote_lab.netlab.yaml_check import MAX_KEYS, check_topology
from tests.corpora import REFUSED_NAMES, UNPRINTABLE, UPLOADS, Upload

BOMB = b"a: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 10)) for name in b"bcdefghi"
)


# Names


@pytest.mark.parametrize(
    ("uploaded", "shown"),
    [
        ("topology.yml", "topology.yml"),
        ("topology.yaml", "topology.yml"),
        ("Topology.YAML", "Topology.yml"),
        ("two words.yml", "two words.yml"),
        ("über.yml", "über.yml"),
        ("a.b.yml", "a.b.yml"),
        ("--cleanup.yml", "--cleanup.yml"),
        ("hosts.yml", "hosts.yml"),
    ],
)
def test_a_topology_is_shown_as_yml(uploaded: str, shown: str) -> None:
    assert topology_name(uploaded) == shown


@pytest.mark.parametrize(
    "uploaded",
    ["topology.txt", "topology", "topology.yml.exe", ".yml", "yml", "", "directory/topology.yml", "topology.json"],
)
def test_a_topology_with_another_suffix_or_in_a_directory_is_refused(uploaded: str) -> None:
    with pytest.raises(ValueError, match=r"file name"):
        topology_name(uploaded)


@pytest.mark.parametrize("uploaded", ["vars.yml", "templates/frr/ospf.j2", "a/b/c/d", "netlab.locks", "name..txt"])
def test_extra_files_may_be_in_directories(uploaded: str) -> None:
    assert relative_name(uploaded) == PurePosixPath(uploaded)


REFUSED_PATHS = {
    "absolute": "/etc/passwd",
    "absolute, twice": "//etc/passwd",
    "parent": "../x",
    "parent inside": "a/../../x",
    "parent that stays": "a/../b",
    "parent at the end": "a/..",
    "dot": "./x",
    "empty part": "a//b",
    "a directory": "a/",
    "backslash": "..\\x",
    "backslash inside": "a\\b",
    "drive": "C:/x",
    "drive, relative": "c:x",
    "network share": "\\\\host\\share",
    "NUL": "a\0b",
    "NUL before the suffix": "a.yml\0.txt",
    "new line": "a\nb",
    "delete": "a\x7fb",
    "empty": "",
    "too long": "x" * 256,
    "too long in UTF-8": "ü" * 128,
    "too deep": "a/" * 20 + "b",
    "dot file": ".bashrc",
    "dot directory": ".git/config",
    "dot file below": "a/.env",
    "snapshot": "netlab.snapshot.pickle",
    "snapshot below": "a/netlab.snapshot.pickle",
    "snapshot in capitals": "NETLAB.snapshot.PICKLE",
    "lock": "netlab.lock",
    "ansible": "ansible.cfg",
}


@pytest.mark.parametrize("uploaded", REFUSED_PATHS.values(), ids=REFUSED_PATHS.keys())
def test_a_name_that_leaves_the_directory_or_acts_on_netlab_is_refused(uploaded: str) -> None:
    with pytest.raises(ValueError, match=r"file name"):
        relative_name(uploaded)


@pytest.mark.parametrize(("uploaded", "sentence"), REFUSED_NAMES)
def test_a_name_that_netlab_writes_reads_or_deletes_is_refused_with_the_reason(uploaded: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"file name.*{re.escape(sentence)}"):
        extra_file_name(uploaded)


@pytest.mark.parametrize(
    "uploaded",
    [
        "host_vars/r1.yml",
        "host_vars/r1/users.yml",
        "group_vars/all.yml",
        "group_vars/frr/bgp/topology.yml",
        "templates/hosts.yml",
        "templates/clab.yml",
        "config/r1.j2",
        "suzieq/notes.txt",
        "clab-notes.md",
        "topology-defaults.yml",
        "files/node_files",
        "plugin.py",
        "initial.j2",
    ],
)
def test_other_names_are_accepted(uploaded: str) -> None:
    assert extra_file_name(uploaded) == PurePosixPath(uploaded)


@pytest.mark.parametrize("character", UNPRINTABLE.values(), ids=UNPRINTABLE.keys())
def test_a_name_with_a_character_that_is_not_printable_is_refused(character: str) -> None:
    for uploaded in (f"a{character}b.yml", f"{character}.yml", f"a.yml{character}", f"a{character}/b.yml"):
        with pytest.raises(ValueError, match=rf"file name .* has the character U\+{ord(character):04X}"):
            relative_name(uploaded)
        with pytest.raises(ValueError, match=r"has the character"):
            topology_name(uploaded)


def test_a_lone_surrogate_in_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has the character U\+DCFF"):
        relative_name("a\udcff.yml")


@pytest.mark.parametrize("name", [".DS_Store", ".gitkeep", "a/.gitignore", "._motd.j2", "a/b/._x", ".GitKeep"])
def test_files_of_operating_systems_and_editors_are_ignored(name: str) -> None:
    assert is_ignored(name)


@pytest.mark.parametrize("name", [".bashrc", ".git/config", "gitkeep", "a/.gitkeep/x", ".netlab.yml", ".env"])
def test_no_other_dot_file_is_ignored(name: str) -> None:
    assert not is_ignored(name)


@given(st.text(alphabet=st.sampled_from("aA./\\:\0~ %.."), max_size=12))
def test_no_accepted_name_leads_out_of_its_directory(uploaded: str) -> None:
    try:
        name = relative_name(uploaded)
    except ValueError:
        return
    assert not name.is_absolute()
    assert ".." not in name.parts
    assert "\\" not in str(name)
    assert "\0" not in str(name)


@pytest.mark.parametrize(
    ("known", "name"),
    [("a.yml", "a.yml"), ("a.yml", "A.YML"), ("a", "a/b"), ("a/b", "a"), ("A/b", "a/B/c"), ("straße", "STRASSE")],
)
def test_names_collide_as_on_a_file_system_that_ignores_case(known: str, name: str) -> None:
    assert collision([PurePosixPath("other"), PurePosixPath(known)], PurePosixPath(name))


@pytest.mark.parametrize(("known", "name"), [("a.yml", "b.yml"), ("a/b", "a/c"), ("a", "ab"), ("a/b", "ab")])
def test_different_names_do_not_collide(known: str, name: str) -> None:
    assert not collision([PurePosixPath(known)], PurePosixPath(name))


# Contents


@pytest.mark.parametrize(
    "content",
    [
        b"nodes: [r1]\n",
        b"\xef\xbb\xbfnodes: [r1]\n",
        "name: \u00fcbung\n".encode(),
        b"# a comment\n{}\n",
        b"a: &x [1, 2]\nb: *x\nc: *x\n",
        b"base: &x {a: 1}\nb: {<<: *x}\n",
    ],
)
def test_a_mapping_in_utf_8_passes(content: bytes) -> None:
    check_topology(content, max_nodes=1000)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "is empty", id="no bytes"),
        pytest.param(b" \n\t\n", "is empty", id="only white space"),
        pytest.param(b"\xef\xbb\xbf", "is empty", id="only a byte order mark"),
        pytest.param(b"# nothing else\n", "must be a YAML mapping", id="only a comment"),
        pytest.param(b"name: \xff\n", "is not UTF-8 text", id="Latin-1"),
        pytest.param("name: x\n".encode("utf-16"), "is not UTF-8 text", id="UTF-16"),
        pytest.param(b"- r1\n- r2\n", "must be a YAML mapping", id="a list"),
        pytest.param(b"r1\n", "must be a YAML mapping", id="a word"),
        pytest.param(b"a: [1\n", "is not valid YAML", id="not closed"),
        pytest.param(b"a: *nowhere\n", "is not valid YAML", id="unknown alias"),
        pytest.param(b"a: 1\n---\nb: 2\n", "is not valid YAML", id="two documents"),
        pytest.param(b"a: \0\n", "is not valid YAML", id="NUL"),
        pytest.param(b"a: &x [*x]\n", "an alias that contains itself", id="recursive alias"),
        pytest.param(b"a: &x {b: {c: *x}}\n", "an alias that contains itself", id="recursive mapping"),
        pytest.param(BOMB, "more than 1000 YAML nodes", id="alias bomb"),
        pytest.param(b"a: " + b"[" * 600 + b"]" * 600, "nested too deeply", id="deep list"),
        pytest.param(b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deeply", id="depth that no parser takes"),
    ],
)
def test_an_invalid_topology_is_refused_with_a_message(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_topology(content, max_nodes=1000)


@pytest.mark.parametrize("upload", [upload for upload in UPLOADS if "topology" in upload.fields], ids=lambda u: u.name)
def test_a_small_file_that_would_cost_much_is_refused(upload: Upload) -> None:
    with pytest.raises(ValueError, match=re.escape(upload.sentence)):
        check_topology(upload.topology(), max_nodes=UploadSettings().max_yaml_nodes)


@pytest.mark.parametrize(
    "content",
    [
        "%YAML 1.1\n---\nnodes: [a]\n",
        "nodes: {a: {id: 0x1f, mtu: 9_216, uptime: 12:30:45, asn: 65000.1}}\n",
        "a: '" + "1:" * 1000 + "1'\n",
        "a: !!str " + "1" * 1000 + "\n",
        "a: " + "f00d" * 1000 + "\n",
        "a: " + "x" * 100_000 + "\n",
        "a: |\n" + " %TAG !x! tag:x\n" * 1000,
        "a: |\n" + "  neighbor 10.0.0.1\n" * 20_000,
        "groups: {" + ", ".join(f"g{n}: 1" for n in range(MAX_KEYS)) + "}\n",
        "nodes: [" + ", ".join(f"r{n}" for n in range(2000)) + "]\nlinks: [" + ", ".join(["r1-r2"] * 8000) + "]\n",
    ],
    ids=lambda content: content[:20],
)
def test_valid_topologies_are_accepted(content: str) -> None:
    check_topology(content.encode(), max_nodes=UploadSettings().max_yaml_nodes)


def test_aliases_are_counted_and_not_expanded() -> None:
    levels = b"".join(b"k%d: &k%d [*k%d, *k%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 200))
    with pytest.raises(ValueError, match="YAML nodes"):  # 2 ** 200 of them
        check_topology(b"k0: &k0 x\n" + levels, max_nodes=10**9)


def test_the_limit_counts_each_use_of_an_alias() -> None:
    content = b"a: &x [1, 2, 3]\nb: *x\n"  # 1 mapping, 2 keys, twice a list of 3
    check_topology(content, max_nodes=11)
    with pytest.raises(ValueError, match="more than 10 YAML nodes"):
        check_topology(content, max_nodes=10)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_and_does_not_crash(opening: str) -> None:
    # In a separate process, because a parser that overflows the stack crashes its process.
    script = f"""
import threading
from neops_remote_lab.netlab.yaml_check import check_topology

def check():
    try:
        check_topology(b"a:\\n " + {opening!r}.encode() * 250_000, max_nodes=100_000)
    except ValueError as error:
        print(str(error)[:80])

thread = threading.Thread(target=check)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith("the topology is n")  # nested too deeply, or not valid YAML
