"""The fake ``netlab`` and ``docker``: their behaviour, and comparisons with the real programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.fakes import REAL_NETLAB_LOCK, FakeNetlab, install_fake_netlab, topology_text, wait_until
from tests.server import docker_problem

PHASES = [
    "Creating configuration files",
    "Checking virtualization provider installation",
    "Starting clab nodes",
    "Deploying initial device configurations",
    "OK: Lab devices configured",
]
DEVICES = (
    "type(nodes)(dict((n, __import__('netsim.outputs.common').outputs.common.adjust_inventory_host"
    "(d, defaults, None, None, True) + dict([('_netlab_version', _netlab_version)])) for n, d in nodes.items()))"
)


@dataclass
class Shell:
    """A work directory in which programs are run with a given environment."""

    directory: Path
    environment: dict[str, str]

    def __call__(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())


@pytest.fixture
def fake(tmp_path: Path) -> FakeNetlab:
    return install_fake_netlab(tmp_path / "host")


@pytest.fixture
def new_shell(fake: FakeNetlab, tmp_path: Path) -> Callable[[str], Shell]:
    def make(name: str) -> Shell:
        (tmp_path / name).mkdir()
        return Shell(tmp_path / name, fake.environment())

    return make


@pytest.fixture
def shell(new_shell: Callable[[str], Shell]) -> Shell:
    shell = new_shell("work")
    shell.write("topo.yml", topology_text(nodes=3, name="lab"))
    return shell


def kill_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# Start and end of a lab


def test_up_prints_its_phases_and_registers_the_lab(fake: FakeNetlab, shell: Shell) -> None:
    up = shell("netlab", "up", "topo.yml")

    assert up.returncode == 0, up.stderr
    assert [line for line in up.stdout.splitlines() if line in PHASES] == PHASES
    assert sorted(container["name"] for container in fake.containers()) == ["clab-lab-r1", "clab-lab-r2", "clab-lab-r3"]
    entry = fake.instances()["default"]
    assert (entry["dir"], entry["name"], entry["providers"], entry["status"]) == (
        str(shell.directory),
        "lab",
        ["clab"],
        "started",
    )
    assert yaml.safe_load((shell.directory / "clab.yml").read_text())["mgmt"]["network"] == "netlab_mgmt"


def test_down_with_cleanup_keeps_the_topology(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    down = shell("netlab", "down", "--cleanup")

    assert down.returncode == 0, down.stderr
    assert fake.is_clean()
    assert shell.files() == ["topo.yml"]


def test_down_without_cleanup_keeps_the_snapshot(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")

    assert shell("netlab", "down").returncode == 0
    assert fake.is_clean()
    assert "netlab.snapshot.pickle" in shell.files()
    assert "netlab.lock" not in shell.files()


def test_create_and_up_from_the_snapshot_equal_up(fake: FakeNetlab, shell: Shell) -> None:
    assert shell("netlab", "create", "topo.yml").returncode == 0
    assert fake.is_clean()
    assert shell("netlab", "inspect", "--node", "r1", "--format", "json").returncode == 0

    up = shell("netlab", "up", "--snapshot")

    assert up.returncode == 0, up.stderr
    assert [line for line in up.stdout.splitlines() if line in PHASES] == PHASES[1:]
    assert len(fake.containers()) == 3


def test_the_external_provider_reads_a_confirmation_from_standard_input(fake: FakeNetlab, shell: Shell) -> None:
    shell.write("topo.yml", topology_text(nodes=2, provider="external", name="ext"))

    closed = shell("netlab", "up", "topo.yml", "--no-config")
    assert (closed.returncode, "EOFError" in closed.stderr) == (1, True)
    assert list(fake.instances()) == ["external_ext"]
    assert shell("netlab", "down", "--cleanup").returncode == 0

    assert shell("netlab", "up", "topo.yml", "--no-config", stdin="n\n").returncode == 1
    assert fake.is_clean()

    assert shell("netlab", "up", "topo.yml", "--no-config", stdin="y\n").returncode == 0
    assert fake.instances()["external_ext"]["status"] == "started"


def test_a_second_up_in_the_directory_is_refused(shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    again = shell("netlab", "up", "topo.yml")

    assert again.returncode == 1
    assert "Cannot start another lab in the same directory" in again.stderr


def test_an_up_elsewhere_is_refused_while_the_instance_is_registered(
    shell: Shell, new_shell: Callable[[str], Shell], fake: FakeNetlab
) -> None:
    shell("netlab", "up", "topo.yml")
    other = new_shell("other")
    other.write("topo.yml", topology_text(nodes=1))
    refused = other("netlab", "up", "topo.yml")

    assert refused.returncode == 1
    assert 'aborting "netlab up" request' in refused.stderr
    assert str(shell.directory) in refused.stdout
    assert fake.violations() == []


def test_a_lab_beside_another_is_a_violation(shell: Shell, new_shell: Callable[[str], Shell], fake: FakeNetlab) -> None:
    shell("netlab", "up", "topo.yml")
    other = new_shell("other")
    other.write("topo.yml", topology_text(nodes=1, provider="external"))
    other("netlab", "up", "topo.yml", stdin="y\n")

    assert len(fake.violations()) == 1
    assert not fake.is_clean()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [a", "Fatal error in netlab: Cannot read YAML from "),
        ("just text", "Fatal error in netlab: Cannot read YAML from "),
        ("provider: clab", "Required topology element 'nodes' is missing or empty"),
        ("provider: clab\nnodes: [a]", "MissingValue in nodes: No device type specified for node a"),
        ("provider: clab\ndefaults.device: frr\nnodes: [a]\nfoo: 1", "Invalid topology attribute 'foo'"),
        ("provider: clab\ndefaults.device: frr\nnodes: {a: {foo: 1}}", "Invalid node attribute 'foo' found in nodes.a"),
        ("provider: clab\ndefaults.device: frr\nnodes: [a]\nlinks: [a-b]", "refers to an unknown node b"),
        ("provider: nope\ndefaults.device: frr\nnodes: [a]", "Unknown virtualization provider nope"),
        ("provider: clab\ndefaults.device: frr\nnodes: 3", "TypeError: 'int' object is not iterable"),
    ],
)
def test_a_wrong_topology_is_rejected_before_anything_is_registered(
    fake: FakeNetlab, shell: Shell, text: str, message: str
) -> None:
    shell.write("topo.yml", text)
    up = shell("netlab", "up", "topo.yml")

    assert up.returncode == 1
    assert up.stdout.splitlines() == ["Creating configuration files"]
    assert message in up.stderr
    assert fake.is_clean()


def test_down_in_a_directory_without_snapshot_fails(shell: Shell) -> None:
    down = shell("netlab", "down", "--cleanup")

    assert down.returncode == 1
    assert "The topology snapshot file netlab.snapshot.pickle does not exist" in down.stderr


def test_a_lab_killed_halfway_is_removed_by_down(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(hang="start")
    process = shell.start("netlab", "up", "topo.yml")
    wait_until(lambda: any(line["event"] == "hang" for line in fake.log()))
    kill_group(process)
    fake.control()

    assert len(fake.containers()) == 2
    assert list(fake.instances()) == ["default"]
    assert shell("netlab", "down", "--cleanup").returncode == 0
    assert fake.is_clean()


# Queries


def test_devices_of_one_expression_equal_those_of_single_nodes(shell: Shell) -> None:
    shell("netlab", "create", "topo.yml")
    together = json.loads(shell("netlab", "inspect", "--format", "json", DEVICES).stdout)
    single = {
        name: json.loads(shell("netlab", "inspect", "--node", name, "--format", "json").stdout) for name in together
    }

    assert together == single
    assert list(together) == ["r1", "r2", "r3"]
    assert together["r2"]["mgmt"]["ipv4"] == "192.168.121.102"
    assert [link["type"] for link in together["r2"]["interfaces"]] == ["p2p", "p2p"]


def test_the_expression_can_fail_alone(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "create", "topo.yml")
    fake.control(fail="expression")

    assert shell("netlab", "inspect", "--format", "json", DEVICES).returncode == 1
    assert shell("netlab", "inspect", "--node", "r1", "--format", "json").returncode == 0


def test_status_shows_which_nodes_run(fake: FakeNetlab, shell: Shell) -> None:
    assert json.loads(shell("netlab", "status", "--format", "json").stdout) == {"warning": "No netlab-managed labs"}
    shell("netlab", "up", "topo.yml")
    shell("docker", "rm", "-f", "clab-lab-r2")
    status = json.loads(shell("netlab", "status", "--format", "json").stdout)

    assert {name: node.get("status") for name, node in status["nodes"].items()} == {
        "r1": "Up 2 seconds",
        "r2": None,
        "r3": "Up 2 seconds",
    }
    assert list(json.loads(shell("netlab", "status", "--all", "--format", "json").stdout)) == ["default"]


def test_version_is_a_command_and_no_option(shell: Shell) -> None:
    assert shell("netlab", "version").stdout.startswith("netlab version 26.10")
    refused = shell("netlab", "--version")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (
        1,
        "FatalError in netlab: Unknown command --version",
    )


# Knobs


@pytest.mark.parametrize(
    ("what", "nodes", "last"),
    [
        ("create", 0, "Cannot proceed beyond this point due to errors, exiting"),
        ("probe", 0, "Cannot run 'docker version'"),
        ("start", 2, "containerlab deploy --reconfigure -t clab.yml failed, aborting..."),
        ("config", 3, "netlab initial failed, aborting..."),
    ],
)
def test_up_fails_in_the_configured_phase_as_often_as_configured(
    fake: FakeNetlab, shell: Shell, what: str, nodes: int, last: str
) -> None:
    fake.control(fail=what, fail_times=1)
    up = shell("netlab", "up", "topo.yml")

    assert up.returncode == 1
    assert last in up.stderr.splitlines()[-1]
    assert len(fake.containers()) == nodes
    assert ("default" in fake.instances()) == (what != "create")
    shell("netlab", "down", "--cleanup")
    assert shell("netlab", "up", "topo.yml").returncode == 0


def test_a_failed_down_changes_nothing_and_a_forced_one_hides_leftovers(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    fake.control(fail="down")

    assert shell("netlab", "down", "--cleanup").returncode == 1
    assert len(fake.instances()) == 1
    assert shell("netlab", "down", "--cleanup", "--force").returncode == 0
    assert fake.instances() == {}
    assert len(fake.containers()) == 3


def test_down_reports_success_although_its_probes_fail(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    fake.control(fail="down_probe")

    assert shell("netlab", "down", "--cleanup").returncode == 0
    assert len(fake.containers()) == 3


def test_down_leaks_the_configured_number_of_containers(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    fake.control(leak_containers=1)

    assert shell("netlab", "down", "--cleanup").returncode == 0
    assert fake.leftovers() == [f"container {fake.containers()[0]['name']}", "network netlab_mgmt"]


def test_a_topology_may_have_its_own_knobs(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(fail="create")
    shell.write("topo.yml", topology_text(nodes=1, fail="config", fail_times=1))

    assert shell("netlab", "up", "topo.yml").stderr.endswith("netlab initial failed, aborting...\n")
    assert shell("netlab", "down", "--cleanup").returncode == 0
    assert shell("netlab", "up", "topo.yml").returncode == 0


def test_a_stubborn_hang_survives_sigterm_and_has_a_child(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(hang="create", stubborn=True, hang_child=True)
    process = shell.start("netlab", "up", "topo.yml")
    wait_until(lambda: len([line for line in fake.log() if line["event"] == "hang"]) == 2)

    os.killpg(process.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    kill_group(process)
    assert {line["pid"] for line in fake.log() if line["event"] == "hang"} > {process.pid}


def test_phases_take_the_configured_time(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(node_seconds=0.1)
    began = time.monotonic()
    shell("netlab", "up", "topo.yml")
    assert time.monotonic() - began > 0.3


def test_a_command_can_print_much_output_and_a_traceback(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(spam_bytes=100_050, traceback="probe")
    up = shell("netlab", "up", "topo.yml")

    assert up.stdout.count("x") >= 99_000
    assert (up.returncode, up.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")


def test_unknown_knobs_are_refused(fake: FakeNetlab, shell: Shell) -> None:
    with pytest.raises(ValueError, match="no knob fial"):
        fake.control(fial="up")
    shell.write("topo.yml", topology_text() + "x_fake: {fial: up}\n")
    assert shell("netlab", "create", "topo.yml").returncode == 1


def test_the_log_has_the_result_of_each_invocation(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "create", "topo.yml")
    shell("netlab", "nonsense")

    events = [(line["event"], line.get("phase"), line["status"]) for line in fake.log()]
    assert events == [
        ("start", None, None),
        ("phase", "create", None),
        ("end", None, 0),
        ("start", None, None),
        ("end", None, 1),
    ]
    assert fake.invocations("create") == [["create", "topo.yml"]]
    assert fake.log()[0]["cwd"] == str(shell.directory)


SLOW_IMPORTS = {"argparse", "asyncio", "datetime", "neops_remote_lab", "subprocess", "typing", "yaml"}
"""Modules whose import takes longer than the rest of a fake's start."""


@pytest.mark.parametrize(("program", "command"), [("netlab", "version"), ("docker", "ps")])
def test_starting_imports_nothing_slow(fake: FakeNetlab, shell: Shell, program: str, command: str) -> None:
    python = fake.root / "netlab-environment" / "bin" / "python"
    code = f"import fake_{program}; fake_{program}.main()"
    started = shell(str(python), "-I", "-X", "importtime", "-c", code, command)
    assert started.returncode == 0
    modules = [line.split("|")[-1].strip() for line in started.stderr.splitlines() if line.startswith("import time")]
    own = modules[modules.index("site") + 1 :]  # the modules before are those of the interpreter
    assert f"fake_{program}" in own
    assert SLOW_IMPORTS.isdisjoint(own)


def test_the_fakes_run_as_plain_script_files(fake: FakeNetlab, shell: Shell) -> None:
    import neops_remote_lab.testing.fake_netlab as module

    assert shell(sys.executable, module.__file__, "create", "topo.yml").returncode == 0
    assert shell(sys.executable, module.__file__.replace("netlab.py", "docker.py"), "ps").returncode == 0


# Artifacts


def test_configurations_are_collected_below_the_current_directory_of_the_shell(shell: Shell) -> None:
    shell.write("topo.yml", topology_text(nodes=3).replace("frr", "eos"))
    shell("netlab", "up", "topo.yml")
    shell.environment["PWD"] = str(shell.directory.parent)
    assert shell("netlab", "collect", "-o", "configs", "--limit", "r1,r3").returncode == 0
    assert list((shell.directory / "configs").iterdir()) == []
    written = shell.directory.parent / "configs"
    assert sorted(path.name for path in written.iterdir()) == ["r1.cfg", "r3.cfg"]
    assert "hostname r1\n" in (written / "r1.cfg").read_text()


def test_a_failed_collection_has_the_configurations_of_the_nodes_that_answered(fake: FakeNetlab, shell: Shell) -> None:
    shell.environment["PWD"] = str(shell.directory)
    shell("netlab", "up", "topo.yml")
    fake.control(fail="collect")
    failed = shell("netlab", "collect")
    assert failed.returncode == 1
    assert "Executing Ansible playbook" in failed.stderr
    assert sorted(path.name for path in (shell.directory / "config").iterdir()) == ["r1-daemons", "r1.cfg"]
    assert "Cannot create output directory" in shell("netlab", "collect", "-o", "no/such").stderr


def test_a_graph_is_rendered_if_graphviz_is_installed(fake: FakeNetlab, shell: Shell) -> None:
    shell.environment["PATH"] = str(fake.bin)
    shell("netlab", "up", "topo.yml")
    shown = shell("netlab", "graph", "lab.svg")
    assert (shown.returncode, shown.stdout) == (0, "Created graph file lab.dot in topology format\n")
    assert "Cannot find the dot command" in shown.stderr
    assert ' "r1" -- "r2"\n' in (shell.directory / "lab.dot").read_text()

    dot = fake.bin / "dot"
    dot.write_text('#!/bin/sh\necho "<svg/>" >"$5"\n')
    dot.chmod(0o755)
    assert shell("netlab", "graph", "lab.svg").stderr == ""
    assert (shell.directory / "lab.svg").read_text() == "<svg/>\n"


# docker


def test_docker_prints_the_log_of_a_container_and_runs_its_shell(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    fake.control(log_bytes=1000)
    printed = shell("docker", "logs", "clab-lab-r1")
    assert printed.stdout == "Starting watchfrr\n"
    assert len(printed.stderr.splitlines()) == 11
    assert len(shell("docker", "logs", "--timestamps", "--tail=2", "clab-lab-r1").stderr.splitlines()) == 2
    shown = shell("docker", "exec", "clab-lab-r2", "vtysh", "-c", "show running-config")
    assert "hostname r2\n" in shown.stdout
    for command in ("logs", "exec"):
        missing = shell("docker", command, "nothing", *(["true"] if command == "exec" else []))
        assert missing.stderr == "Error response from daemon: No such container: nothing\n"


def test_docker_lists_the_containers_of_a_lab(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    rows = [json.loads(line) for line in shell("docker", "ps", "-a", "--format", "{{json .}}").stdout.splitlines()]

    assert {row["Names"] for row in rows} == {"clab-lab-r1", "clab-lab-r2", "clab-lab-r3"}
    assert all(f"clab-topo-file={shell.directory}/clab.yml" in row["Labels"] for row in rows)
    by_lab = shell("docker", "ps", "-aq", "--filter", "label=containerlab=lab", "--filter", "label=clab-node-name=r2")
    assert len(by_lab.stdout.split()) == 1
    assert shell("docker", "ps", "-q", "--filter", "label=containerlab=other").stdout == ""
    assert [len(word) for word in shell("docker", "ps", "-q", "--no-trunc").stdout.split()] == [64, 64, 64]


def test_docker_removes_containers_and_then_their_network(fake: FakeNetlab, shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    assert "active endpoints" in shell("docker", "network", "rm", "netlab_mgmt").stderr
    assert shell("docker", "rm", "clab-lab-r1").returncode == 1

    ids = shell("docker", "ps", "-aq").stdout.split()
    removed = shell("docker", "rm", "-f", *ids)
    assert (removed.returncode, removed.stdout.split()) == (0, ids)
    assert shell("docker", "network", "rm", "netlab_mgmt").returncode == 0
    assert (fake.containers(), fake.networks()) == ([], [])


def test_docker_inspects_existing_objects_and_reports_the_others(shell: Shell) -> None:
    shell("netlab", "up", "topo.yml")
    result = shell("docker", "inspect", "clab-lab-r1", "nothing")
    (details,) = json.loads(result.stdout)

    assert (result.returncode, result.stderr) == (1, "Error: No such object: nothing\n")
    assert details["Name"] == "/clab-lab-r1"
    assert details["Config"]["Labels"]["containerlab"] == "lab"
    assert (details["State"]["Status"], details["State"]["Running"]) == ("running", True)
    (network,) = json.loads(shell("docker", "network", "inspect", "netlab_mgmt").stdout)
    assert len(network["Containers"]) == 3


def test_an_unreachable_docker_daemon_makes_netlab_fail_too(fake: FakeNetlab, shell: Shell) -> None:
    fake.control(docker_unreachable=True)

    assert "Cannot connect to the Docker daemon" in shell("docker", "ps").stderr
    assert shell("netlab", "up", "topo.yml").returncode == 1
    assert fake.containers() == []


# Several labs at once


def multilab(shell: Shell, number: int, *settings: str) -> subprocess.CompletedProcess[str]:
    arguments = [f"defaults.multilab.id={number}", *settings]
    created = shell("netlab", "create", "topo.yml", "--plugin", "multilab", *(w for s in arguments for w in ("-s", s)))
    assert created.returncode == 0, created.stderr
    return shell("netlab", "up", "--snapshot")


def test_labs_with_different_ids_run_beside_each_other(new_shell: Callable[[str], Shell], fake: FakeNetlab) -> None:
    shells = [new_shell(name) for name in ("one", "two")]
    for number, shell in enumerate(shells, 5):
        shell.write("topo.yml", topology_text(3))
        assert multilab(shell, number).returncode == 0
    assert fake.violations() == []
    assert {each["network"] for each in fake.containers()} == {"nl_mgmt_5", "nl_mgmt_6"}
    assert fake.instances().keys() == {5, 6}
    assert shells[0]("netlab", "down", "--cleanup").returncode == 0
    assert {each["labels"]["containerlab"] for each in fake.containers()} == {"ml-6"}


def test_a_lab_destroys_another_with_its_id_and_succeeds(new_shell: Callable[[str], Shell], fake: FakeNetlab) -> None:
    shells = [new_shell(name) for name in ("one", "two")]
    for shell in shells:
        shell.write("topo.yml", topology_text(2))
        assert multilab(shell, 5, f"defaults.lab_status_file={shell.directory}/status.yaml").returncode == 0
    assert {each["labels"]["clab-topo-file"] for each in fake.containers()} == {f"{shells[1].directory}/clab.yml"}
    assert len(fake.violations()) == 1
    assert shells[0]("netlab", "down", "--cleanup").returncode == 0
    assert fake.containers() == []


def test_the_end_of_a_lab_removes_a_bridge_that_it_shares_with_another(
    new_shell: Callable[[str], Shell], fake: FakeNetlab
) -> None:
    shells = [new_shell(name) for name in ("one", "two")]
    for number, shell in enumerate(shells, 5):
        shell.write("topo.yml", topology_text(3) + "- {r1: , r2: , r3: , bridge: shared0}\n")
        assert multilab(shell, number).returncode == 0
    assert "shared0" in fake.system_objects()
    assert len(fake.violations()) == 1
    assert shells[0]("netlab", "down", "--cleanup").returncode == 0
    assert "shared0" not in fake.system_objects()


def test_reading_the_list_of_instances_while_it_is_written_fails(
    new_shell: Callable[[str], Shell], fake: FakeNetlab
) -> None:
    shells = [new_shell(name) for name in ("one", "two", "three")]
    for number, shell in enumerate(shells, 5):
        shell.write("topo.yml", topology_text(1))
        assert multilab(shell, number, *(["defaults.lab_status_file=own.yaml"] if number == 7 else [])).returncode == 0
    fake.control(status_race=True)
    failed = shells[0]("netlab", "down", "--cleanup")
    assert (failed.returncode, "Cannot read lab status file" in failed.stderr) == (1, True)
    assert len(fake.containers()) == 3
    assert shells[2]("netlab", "down", "--cleanup").returncode == 0


@pytest.mark.parametrize("locked", [False, True])
def test_commands_of_an_old_containerlab_at_once_fail_unless_they_are_locked(
    new_shell: Callable[[str], Shell], fake: FakeNetlab, locked: bool
) -> None:
    fake.control(deploy_race=True, node_seconds=0.2)
    shells = [new_shell(name) for name in ("one", "two")]
    lock = [f"defaults.multilab.lock={fake.root}/lock"] if locked else []
    for shell in shells:
        shell.write("topo.yml", topology_text(2))
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda number: multilab(shells[number - 5], number, *lock).returncode, (5, 6)))
    assert sorted(results) == [0, 0 if locked else 1]


@pytest.mark.parametrize("number", ["0", "201", "x"])
def test_an_id_that_the_plugin_does_not_accept_is_refused(shell: Shell, number: str) -> None:
    shell.write("topo.yml", topology_text(1))
    result = shell("netlab", "create", "topo.yml", "--plugin", "multilab", "-s", f"defaults.multilab.id={number}")
    assert (result.returncode, "must be an integer between 1 and 200" in result.stderr) == (1, True)


# Comparisons with the real programs


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The real netlab in a separate directory. It uses the host's list of instances, so only one lab may run."""
    program = shutil.which("netlab")
    if program is None:
        pytest.skip("netlab is not installed on this machine")
    shell = Shell(tmp_path_factory.mktemp("real"), dict(os.environ))
    with FileLock(REAL_NETLAB_LOCK):
        if shell("netlab", "status", "--all").returncode == 0:
            pytest.skip("a lab is registered on this machine")
        yield shell
        if (shell.directory / "netlab.snapshot.pickle").exists():
            shell("netlab", "down", "--cleanup", "--force")


def outcome(result: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    """The parts of a result that the server uses: the exit status, and the lines that report a phase."""
    prefixes = (
        "Creating ",
        "Checking ",
        "Starting ",
        "Deploying initial",
        "Stopping ",
        "Cleanup ",
        "OK:",
        "... removing",
    )
    return result.returncode, [line.strip() for line in result.stdout.splitlines() if line.startswith(prefixes)]


def run_lab(shell: Shell, answer: str, *extra: str) -> list[Any]:
    """Run a lab from `up` to `down`. Returns the results that must be the same for the fake and the real netlab."""
    results: list[Any] = []
    results.append(outcome(shell("netlab", "up", "topo.yml", *extra, stdin=answer)))
    results.append(shell.files())
    status = json.loads(shell("netlab", "status", "--format", "json").stdout)
    results.append({key: status[key] for key in ("name", "providers", "status", "topology")})
    results.append(sorted(set(status) - {"log_line"}))
    results.append({name: (node["device"], node["mgmt"], sorted(node)) for name, node in status["nodes"].items()})
    results.append(outcome(shell("netlab", "up", "topo.yml", *extra)))
    devices = json.loads(shell("netlab", "inspect", "--format", "json", DEVICES).stdout)
    results.append({name: sorted(raw) for name, raw in devices.items()})
    results.append({name: (raw["ansible_user"], raw["ansible_network_os"]) for name, raw in devices.items()})
    results.append([interface["ipv4"] for raw in devices.values() for interface in raw["interfaces"]])
    results.append(devices["r1"] == json.loads(shell("netlab", "inspect", "--node", "r1", "--format", "json").stdout))
    results.append(outcome(shell("netlab", "validate")))
    results.append(outcome(shell("netlab", "graph", "picture.dot")))
    lines = (shell.directory / "picture.dot").read_text().splitlines()
    results.append([line.strip() for line in lines if line.strip().startswith(('"', "label="))])
    results.append(outcome(shell("netlab", "down", "--cleanup")))
    results.append(shell.files())
    results.append(outcome(shell("netlab", "down", "--cleanup")))
    results.append(outcome(shell("netlab", "status", "--all", "--format", "json")))
    return results


@pytest.mark.external
def test_the_real_netlab_behaves_the_same_with_the_external_provider(shell: Shell, real: Shell) -> None:
    text = topology_text(nodes=3, provider="external", name="fakecmp")
    for each in (shell, real):
        each.write("topo.yml", text)

    assert run_lab(shell, "y\n", "--no-config") == run_lab(real, "y\n", "--no-config")


@pytest.mark.external
@pytest.mark.parametrize(
    "text",
    [
        "nodes: [a",
        "just text",
        "provider: clab",
        "provider: clab\nnodes: [a, b]",
        "provider: clab\ndefaults.device: frr\nnodes: [a]\nfoo: 1",
        "provider: clab\ndefaults.device: frr\nnodes: [a]\nlinks: [a-b]",
        "provider: clab\ndefaults.device: nope\nnodes: [a]",
        "provider: nope\ndefaults.device: frr\nnodes: [a]",
    ],
)
def test_the_real_netlab_rejects_topologies_with_the_same_messages(shell: Shell, real: Shell, text: str) -> None:
    results = []
    for each in (shell, real):
        each.write("topo.yml", text)
        result = each("netlab", "up", "topo.yml")
        lines = result.stderr.replace(str(each.directory), "").splitlines()
        results.append((result.returncode, result.stdout, [line for line in lines if not line.startswith("...")]))

    assert results[0] == results[1]


@pytest.mark.external
@pytest.mark.parametrize("argv", [["--version"], ["down"], ["up", "--snapshot"], ["up", "no.yml"], ["down", "--bogus"]])
def test_the_real_netlab_refuses_commands_with_the_same_messages(shell: Shell, real: Shell, argv: list[str]) -> None:
    own, other = (each("netlab", *argv) for each in (shell, real))

    assert own.returncode == other.returncode
    assert own.stderr.splitlines()[-1] == other.stderr.splitlines()[-1]


@pytest.mark.netlab
def test_the_real_netlab_behaves_the_same_with_containers(shell: Shell, real: Shell) -> None:
    if problem := docker_problem() or ("" if shutil.which("containerlab") else "containerlab is not installed"):
        pytest.skip(problem)
    text = topology_text(nodes=2, name="fakecmp")
    runs = []
    for each in (shell, real):
        each.write("topo.yml", text)
        runs.append(run_lab(each, ""))

    assert runs[0] == runs[1]
