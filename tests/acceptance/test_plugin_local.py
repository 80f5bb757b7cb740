"""The pytest plugin as a user sees it: without a server, on a machine that has netlab itself."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from neops_remote_lab.core.host_locks import HostLock
from neops_remote_lab.netlab.lab_lock import LAB_LOCK
from tests.fakes import FakeNetlab, install_fake_netlab, wait_until
from tests.plugin import BLOCK, CONFTEST, finish, start
from tests.server import labs_in

ALONE_AND_XDIST = pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])


class Machine(NamedTuple):
    """The machine of a run without a server: its fake netlab, its labs and its locks."""

    netlab: FakeNetlab
    work_dir: Path
    lock_dir: Path

    def is_clean(self) -> bool:
        return self.netlab.is_clean() and labs_in(self.work_dir) == []

    def ups(self) -> int:
        return len(self.netlab.invocations("up"))


@pytest.fixture
def machine(project: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine with netlab for runs of the project. At the end of the test, nothing of a lab is left."""
    fake = install_fake_netlab(tmp_path / "host")
    found = Machine(fake, tmp_path / "labs-local", tmp_path / "locks")
    variables = {
        **{name: fake.environment()[name] for name in ("PATH", "HOME", "FAKE_NETLAB_STATE")},
        "REMOTE_LAB_URL": "local",
        "NEOPS_REMOTE_LAB_WORK_DIR": str(tmp_path / "labs"),
        "NEOPS_REMOTE_LAB_LOCK_DIR": str(found.lock_dir),
        "NEOPS_REMOTE_LAB_HOST_ROOT": str(fake.system),
        "NEOPS_REMOTE_LAB_ACQUIRE_POLL": "0.05",
        "NEOPS_REMOTE_LAB_KILL_GRACE": "0.2",
        "NEOPS_REMOTE_LAB_TEARDOWN_RETRIES": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield found
    wait_until(found.is_clean, 30, "something is left of a lab")
    assert fake.violations() == []


@contextmanager
def lab_of_another_process(machine: Machine) -> Iterator[None]:
    """Run a lab in another process of this user."""
    lock = HostLock(machine.lock_dir, LAB_LOCK)
    lock.acquire()
    lock.write_note('{"pid": 4711, "user": "ann", "created": "2026-01-01T00:00:00+00:00"}')
    try:
        yield
    finally:
        lock.release()


SUITE = """
    import pytest

    @pytest.mark.parametrize("n", range(4))
    def test_shared(shared, n): assert [device.name for device in shared] == ["r1"]

    @pytest.mark.parametrize("n", range(2))
    def test_fresh(fresh, n): assert [device.name for device in fresh] == ["r1", "r2"]

    def test_router(router): assert router.raw["ansible_user"]
    def test_plain(): pass
"""


@pytest.mark.parametrize(
    "options",
    [[], *(["-p", "xdist", "-n", "2", "--dist", mode] for mode in ("load", "loadfile", "worksteal"))],
    ids=["alone", "load", "loadfile", "worksteal"],
)
def test_the_same_suite_runs_with_the_netlab_of_this_machine(
    project: pytest.Pytester, machine: Machine, options: list[str]
) -> None:
    project.makepyfile(test_one=SUITE, test_two=SUITE.replace("test_", "test_also_"))
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(passed=16)
    result.stdout.fnmatch_lines(["neops-remote-lab: *, lab host local (REMOTE_LAB_URL)"])
    assert machine.ups() == 5


def test_fixtures_and_the_client_offer_the_same_as_with_a_server(project: pytest.Pytester, machine: Machine) -> None:
    project.path.joinpath("template.j2").write_text("welcome")
    project.path.joinpath("shared.yml").rename(project.path / "shared.yaml")
    project.makeconftest(
        """
        import pytest
        from neops_remote_lab.testing.fixture import remote_lab_fixture

        lab = remote_lab_fixture("shared.yaml", name="lab", reuse_lab=True, scope="module", extra_files=["*.j2"])
        reached = remote_lab_fixture(
            "shared.yaml", name="reached", reuse_lab=True, extra_files=["template.j2"], access="forward"
        )
        broken = remote_lab_fixture("broken.yml")
        """
    )
    project.makepyfile(
        f"""
        import pathlib

        def test_files(lab, remote_lab_client):
            [directory] = pathlib.Path({str(machine.work_dir)!r}).glob("*/lab")
            assert (directory / "template.j2").read_text() == "welcome"
            assert remote_lab_client.session_id

        def test_forward(lab, remote_lab_client):
            address = lab[0].raw["mgmt"]["ipv4"]
            for device in lab[0], "r1":
                with remote_lab_client.forward(device, 22) as port:
                    assert (port.host, port.port) == (address, 22)

        def test_devices(lab, remote_lab_client):
            assert remote_lab_client.devices() == lab

        def test_access(reached):
            assert reached[0].raw["ansible_host"] == reached[0].raw["mgmt"]["ipv4"]
            assert reached[0].raw["ansible_port"] == 22

        def test_client(remote_lab_client):
            assert [device.name for device in remote_lab_client.acquire("fresh.yml", True)] == ["r1", "r2"]
            remote_lab_client.acquire("fresh.yml", reuse=True)
            remote_lab_client.release()
            assert remote_lab_client.references
            remote_lab_client.destroy()
            assert not remote_lab_client.references

        def test_broken(broken): pass
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=5, errors=1)
    result.stdout.fnmatch_lines(["remote lab broken: netlab rejects the topology: *no_such_attribute*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert machine.ups() == 3


def test_a_worker_that_takes_a_lab_over_reaches_its_devices_by_name(project: pytest.Pytester, machine: Machine) -> None:
    test = """
        def test_1(shared, remote_lab_client):
            with remote_lab_client.forward("r1", 22) as port:
                assert port.host == shared[0].raw["mgmt"]["ipv4"]
        """
    project.makepyfile(test_one=test, test_two=test)
    project.runpytest_subprocess("-p", "xdist", "-n", "2", "--dist", "loadfile").assert_outcomes(passed=2)
    assert machine.ups() == 1


@ALONE_AND_XDIST
def test_a_shared_lab_that_does_not_start_is_not_started_again(
    project: pytest.Pytester, machine: Machine, options: list[str]
) -> None:
    machine.netlab.control(fail="config")
    project.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass\ndef test_3(shared): pass")
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["remote lab shared: netlab failed to start the lab: exit status 1: *"])
    result.stdout.fnmatch_lines(["remote lab shared: not started again: *"])
    assert machine.ups() == 1


@ALONE_AND_XDIST
@pytest.mark.parametrize(
    "setting",
    [
        ("NEOPS_REMOTE_LAB_NETLAB", "no-such-netlab", "netlab cannot be run on this machine: install*"),
        ("NEOPS_REMOTE_LAB_UP_TIMEOUT", "soon", "NEOPS_REMOTE_LAB_UP_TIMEOUT: *"),
    ],
    ids=["netlab", "timeout"],
)
@pytest.mark.usefixtures("machine")
def test_a_machine_without_netlab_is_reported_once(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], setting: tuple[str, str, str]
) -> None:
    variable, value, message = setting
    monkeypatch.setenv(variable, value)
    project.makepyfile("def test_1(fresh): pass\ndef test_2(fresh): pass\ndef test_3(shared): pass\ndef test_4(): pass")
    result = project.runpytest_subprocess(*options)
    result.assert_outcomes(errors=3, passed=1)
    result.stdout.fnmatch_lines([f"remote lab *: {message}"])
    result.stdout.fnmatch_lines([f"remote lab *: not tried again: {message}"])


def test_an_invalid_setting_is_a_usage_error(
    project: pytest.Pytester, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "soon")
    project.makepyfile("def test_1(fresh): pass")
    for options in ([], ["-p", "xdist", "-n", "2"]):
        assert project.runpytest_subprocess(*options).ret == pytest.ExitCode.USAGE_ERROR


# Other processes


@ALONE_AND_XDIST
def test_a_run_shows_the_process_that_it_waits_for(
    project: pytest.Pytester, machine: Machine, options: list[str]
) -> None:
    project.makepyfile("def test_1(shared): pass")
    with lab_of_another_process(machine):
        process = start(project, *options)
        assert process.stdout is not None
        reported = next(line.decode() for line in process.stdout if line.startswith(b"remote lab: waiting"))
        assert "another process" in reported
        assert "pid 4711 of user ann" in reported
    assert "1 passed" in finish(process)


def test_the_wait_is_limited(project: pytest.Pytester, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "1")
    project.makepyfile("def test_1(shared): pass")
    with lab_of_another_process(machine):
        result = project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["remote lab shared: no lab for shared.yml in 1 s: another process*pid 4711*"])


def test_two_runs_at_once_take_turns(project: pytest.Pytester, machine: Machine) -> None:
    project.makepyfile("import time\ndef test_1(shared): time.sleep(0.5)\ndef test_2(fresh): pass")
    runs = [start(project, *options) for options in ([], ["-p", "xdist", "-n", "2"])]
    for run in runs:
        assert "2 passed" in finish(run)
    assert machine.ups() == 4


def test_leftovers_of_a_killed_run_are_removed_by_the_next_one(project: pytest.Pytester, machine: Machine) -> None:
    project.makepyfile(test_blocked=f"def test_1(shared):{BLOCK}", test_next="def test_2(fresh): pass")
    process = start(project, "test_blocked.py")
    wait_until(project.path.joinpath("blocked").exists, 30)
    process.kill()
    finish(process)
    assert not machine.is_clean()
    project.runpytest_subprocess("test_next.py").assert_outcomes(passed=1)


def test_a_foreign_lab_is_not_touched(project: pytest.Pytester, machine: Machine, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "topology.yml").write_text(project.path.joinpath("fresh.yml").read_text())
    environment = machine.netlab.environment()
    subprocess.run(["netlab", "up", "topology.yml"], cwd=theirs, env=environment, check=True, capture_output=True)
    there = machine.netlab.containers()
    project.makepyfile("def test_1(shared): pass")
    result = project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["remote lab shared: *somebody else's lab*"])
    assert machine.netlab.containers() == there
    subprocess.run(["netlab", "down", "--cleanup"], cwd=theirs, env=environment, check=True, capture_output=True)


# The end


@ALONE_AND_XDIST
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_ended_by_a_signal_tears_its_lab_down(
    project: pytest.Pytester, machine: Machine, options: list[str], number: signal.Signals
) -> None:
    project.makepyfile(f"def test_1(shared):{BLOCK}")
    process = start(project, *options)
    wait_until(project.path.joinpath("blocked").exists, 30)
    process.send_signal(number)
    finish(process)
    assert process.returncode == (pytest.ExitCode.INTERRUPTED if number is signal.SIGINT else 128 + number)
    assert machine.is_clean()


@ALONE_AND_XDIST
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_start_leaves_nothing_behind(
    project: pytest.Pytester, machine: Machine, options: list[str], number: signal.Signals
) -> None:
    machine.netlab.control(hang="start")
    project.makepyfile("def test_1(shared): pass")
    process = start(project, *options)
    wait_until(lambda: any(line["event"] == "hang" for line in machine.netlab.log()), 30)
    machine.netlab.control()
    process.send_signal(number)
    finish(process)
    assert machine.is_clean()


@ALONE_AND_XDIST
def test_a_cancelled_wait_ends_at_once(project: pytest.Pytester, machine: Machine, options: list[str]) -> None:
    project.makepyfile("def test_1(shared): pass")
    with lab_of_another_process(machine):
        process = start(project, *options)
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith(b"remote lab: waiting"))
        process.send_signal(signal.SIGTERM)
        finish(process)
    assert machine.ups() == 0


@pytest.mark.parametrize("end", ["assert False", "import pytest; pytest.exit('enough')", "import os; os._exit(3)"])
@ALONE_AND_XDIST
def test_nothing_is_left_regardless_of_how_a_run_ends(
    project: pytest.Pytester, machine: Machine, options: list[str], end: str
) -> None:
    project.makepyfile(f"def test_1(shared):\n    {end}\ndef test_2(shared): pass")
    result = project.runpytest_subprocess("-x", *options)
    assert result.ret != pytest.ExitCode.OK
    if "_exit" in end and not options:  # after a crash of the only process, the next run removes its leftovers
        project.makepyfile("def test_2(shared): pass")
        project.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.usefixtures("machine")
def test_a_worker_that_crashes_does_not_keep_its_lab(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        def test_1(shared): pass
        def test_2(shared): os._exit(3)
        def test_3(shared): pass
        def test_4(fresh): pass
        """
    )
    project.runpytest_subprocess("-p", "xdist", "-n", "1").assert_outcomes(passed=3, failed=1)


def test_the_lab_of_a_worker_that_is_killed_during_the_start_is_removed(
    project: pytest.Pytester, machine: Machine
) -> None:
    machine.netlab.control(start_seconds=2)
    project.makeconftest(
        CONFTEST
        + """
import os, pathlib, threading

def pytest_runtest_setup(item):
    if item.name == "test_1" and not pathlib.Path("died").exists():
        pathlib.Path("died").touch()
        threading.Timer(1, os._exit, [3]).start()
"""
    )
    project.makepyfile("def test_1(shared): pass\ndef test_2(fresh): pass")
    result = project.runpytest_subprocess("-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=1, failed=1)


@ALONE_AND_XDIST
@pytest.mark.usefixtures("machine")
def test_commands_run_in_devices(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(
        """
        import pytest
        from neops_remote_lab.client.devices import ExecResult

        def test_exec(shared, remote_lab_client):
            for device in shared[0], "r1":
                done = remote_lab_client.exec(device, "read line; echo $line; echo no >&2; exit 3", stdin=b"yes\\n")
                assert done == ExecResult(3, b"yes\\n", b"no\\n")
            assert remote_lab_client.exec("r1", ["echo", "a b"]).stdout == b"a b\\n"
            with pytest.raises(TimeoutError, match="did not end within 1 s"):
                remote_lab_client.exec("r1", "sleep 60", timeout=1)
            with pytest.raises(LookupError, match="no device 'r9'"):
                remote_lab_client.exec("r9", "true")
            with pytest.raises(ValueError, match="a hyphen"):
                remote_lab_client.exec("r1", ["--help"])
        """
    )
    project.runpytest_subprocess(*options).assert_outcomes(passed=1)


@ALONE_AND_XDIST
def test_a_failed_test_has_artifacts(project: pytest.Pytester, machine: Machine, options: list[str]) -> None:
    project.makepyfile("def test_1(shared): assert False")
    project.runpytest_subprocess(*options).assert_outcomes(failed=1)
    [evidence] = project.path.glob("remote-lab-artifacts/*/lab-*")
    assert {"manifest.json", "netlab.log", "devices.json"} <= {path.name for path in evidence.iterdir()}
    assert (evidence / "topology/shared.yml").exists()


def test_a_lab_that_did_not_start_has_a_log(project: pytest.Pytester, machine: Machine) -> None:
    machine.netlab.control(fail="config")
    project.makepyfile("def test_1(shared): pass")
    project.runpytest_subprocess().assert_outcomes(errors=1)
    [evidence] = project.path.glob("remote-lab-artifacts/*/lab-*")
    assert (evidence / "netlab.log").read_text()


# Imports


@pytest.mark.usefixtures("interpreters")
@pytest.mark.parametrize("options", [["-p", "xdist", "-n", "1"]], ids=["xdist"])
def test_a_run_without_lab_tests_needs_no_netlab_and_no_http_client(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("REMOTE_LAB_URL", "local")
    project.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            loaded = {"httpx", "pydantic", "neops_remote_lab.netlab.lab_manager"} & set(sys.modules)
            open("loaded", "a").write(" ".join(loaded))
        """
    )
    project.makepyfile("def test_plain(): pass")
    project.runpytest_subprocess(*options).assert_outcomes(passed=1)
    assert project.path.joinpath("loaded").read_text() == ""


def test_a_run_loads_nothing_of_the_server(project: pytest.Pytester, machine: Machine) -> None:
    project.makepyfile(
        """
        import sys

        def test_1(shared):
            rooms = {name.split(".")[1] for name in sys.modules if name.startswith("neops_remote_lab.")}
            assert not rooms & {"api", "labs", "queue", "store", "cli"}
            assert not {"uvicorn", "starlette", "sqlalchemy"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.usefixtures("machine")
@ALONE_AND_XDIST
def test_the_lab_of_a_failed_test_is_kept(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(test_it="def test_1(shared): assert False\ndef test_2(shared): pass")
    result = project.runpytest_subprocess("--remote-lab-keep-on-failure=2s", *options)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        [
            "remote lab: shared is kept for 2 s:",
            "  r1: 192.168.*, or docker exec -it clab-*-r1 sh",
            "  Ctrl-C ends the run",
            "remote lab: shared is no longer kept: the time is over",
        ]
    )
