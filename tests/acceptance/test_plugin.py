"""The pytest plugin as a user's project sees it: real pytest processes, and a real server where a lab is used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpcore  # noqa: F401 - httpx imports it late, and pytester would take it away again after the test
import httpx
import pytest

from neops_remote_lab.testing.interrupt import SESSION_ENDED
from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import LabServer

PLUGIN = "neops_remote_lab.testing.plugin"
CONFTEST = """
import pytest
from neops_remote_lab.testing.fixture import remote_lab_fixture

shared = remote_lab_fixture("shared.yml", reuse_lab=True)
fresh = remote_lab_fixture("fresh.yml")
broken = remote_lab_fixture("broken.yml")

@pytest.fixture
def router(shared):
    return shared[0]
"""
BLOCK = """
    import pathlib, threading
    pathlib.Path("blocked").touch()
    threading.Event().wait(60)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with three lab fixtures, in an environment without a lab host."""
    pytester.makeconftest(CONFTEST)
    for name, text in {
        "shared": topology_text(nodes=1),
        "fresh": topology_text(nodes=2),
        "broken": topology_text() + "no_such_attribute: 1\n",
    }.items():
        pytester.path.joinpath(f"{name}.yml").write_text(text, encoding="utf-8")
    for name in ("URL", "REQUEST_TIMEOUT", "SESSION_TIMEOUT", "ACQUISITION_TIMEOUT"):
        monkeypatch.delenv(f"REMOTE_LAB_{name}", raising=False)
    # the same whether the distribution is installed or not, and without the imports of other plugins
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {PLUGIN} -p no:cacheprovider")
    return pytester


@pytest.fixture
def online(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.Pytester]:
    """The project, with a lab host; however its runs end, nothing may be left of them."""
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    yield project
    assert queue(lab_server) == []
    wait_until(lambda: not lab_server.fake.leftovers(), 20, "the lab was not torn down")


def queue(lab_server: LabServer) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = httpx.get(f"{lab_server.url}/queue").json()["sessions"]
    return sessions


def ups(lab_server: LabServer) -> int:
    assert isinstance(lab_server.fake, FakeNetlab)
    return len(lab_server.fake.invocations("up"))


@contextmanager
def other_session(lab_server: LabServer) -> Iterator[str]:
    """Somebody else holds the lab host."""
    session_id = httpx.post(f"{lab_server.url}/session", json={"client": "ann@office"}).json()["session_id"]
    try:
        yield session_id
    finally:
        httpx.delete(f"{lab_server.url}/session/{session_id}")


def start(project: pytest.Pytester, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", *arguments]
    process: subprocess.Popen[bytes] = project.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return process


def finish(process: subprocess.Popen[bytes]) -> str:
    output: bytes = process.communicate(timeout=60)[0]
    return output.decode()


def collected(project: pytest.Pytester, *arguments: str) -> list[str]:
    result = project.runpytest_subprocess("--collect-only", "-q", *arguments)
    return [line.split("::", 1)[1] for line in result.outlines if "::" in line]


# Collection


def test_tests_of_one_lab_run_in_a_row_in_the_order_of_the_fixtures(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest

        def test_plain_1(): pass
        def test_fresh_1(fresh): pass

        class TestShared:
            def test_1(self, shared): pass
            def test_plain(self): pass
            def test_2(self, shared): pass

        @pytest.mark.parametrize("n", [2, 1])
        @pytest.mark.parametrize("m", ["b", "a"])
        def test_many(shared, n, m): pass

        def test_through_another_fixture(router): pass

        @pytest.mark.usefixtures("fresh")
        def test_fresh_2(): pass

        def test_plain_2(): pass
        """
    )
    assert collected(project) == [
        "TestShared::test_1",
        "TestShared::test_2",
        "test_many[b-2]",
        "test_many[b-1]",
        "test_many[a-2]",
        "test_many[a-1]",
        "test_through_another_fixture",
        "test_fresh_1",
        "test_fresh_2",
        "test_plain_1",
        "TestShared::test_plain",
        "test_plain_2",
    ]


def test_a_fixture_that_overrides_a_lab_counts_if_it_uses_the_lab(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest

        class TestWithout:
            @pytest.fixture
            def shared(self): return []
            def test_without(self, shared): pass

        class TestWith:
            @pytest.fixture
            def shared(self, shared): return shared[0]
            def test_with(self, shared): pass
        """
    )
    assert collected(project, "-m", "remote_lab") == ["TestWith::test_with"]


def test_lab_tests_carry_a_registered_marker(project: pytest.Pytester) -> None:
    project.makepyfile("def test_plain(): pass\ndef test_lab(shared): pass\ndef test_indirect(router): pass")
    assert collected(project, "--strict-markers", "-m", "remote_lab") == ["test_lab", "test_indirect"]
    assert collected(project, "-m", "not remote_lab") == ["test_plain"]
    project.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.remote_lab:*"])


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_tests_with_two_labs_are_refused_by_name(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(
        """
        def test_good(shared): pass
        def test_both(shared, fresh): pass
        def test_indirect(fresh, router): pass
        """
    )
    result = project.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: *one remote lab*", "*::test_both: shared, fresh", "*::test_indirect: shared, fresh"]
    )
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    assert "test_good" not in result.stderr.str()


def test_a_missing_topology_is_told_where_the_fixture_is_made(project: pytest.Pytester) -> None:
    project.makepyfile(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\nx = remote_lab_fixture('x.yml')"
    )
    result = project.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*FileNotFoundError: no topology file x.yml*"])


def test_a_topology_beside_the_conftest_file_is_found_from_everywhere(project: pytest.Pytester) -> None:
    folder = project.mkdir("labs")
    folder.joinpath("ring.yml").write_text("nodes: [r1]\n")
    folder.joinpath("conftest.py").write_text(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\n"
        "ring = remote_lab_fixture('ring.yml')\nbeam = remote_lab_fixture('shared.yml', name='other')\n"
    )
    folder.joinpath("test_ring.py").write_text("def test_ring(ring): pass\ndef test_other(other): pass\n")
    assert collected(project, "-m", "remote_lab") == ["test_ring", "test_other"]


# Runs without a lab


def test_a_run_without_labs_imports_nothing_but_the_standard_library(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        """
        import json, pathlib, sys

        def test_plain(request):
            used = request.config.pluginmanager.has_plugin("neops_remote_lab.testing.plugin")
            pathlib.Path(f"{used}.json").write_text(json.dumps(list(sys.modules)))
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)
    project.makeconftest("")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    project.runpytest_subprocess().assert_outcomes(passed=1)
    with_plugin, without = (set(json.loads(Path(f"{used}.json").read_text())) for used in (True, False))
    added = {name.partition(".")[0] for name in with_plugin - without}
    assert added <= {"neops_remote_lab", "conftest", *sys.stdlib_module_names}
    assert "neops_remote_lab.client" not in with_plugin


def test_without_the_plugin_only_lab_tests_fail(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:cacheprovider")
    project.makepyfile("def test_plain(): pass\ndef test_lab(shared): pass")
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'remote_lab_client' not found*"])


def test_lab_tests_need_a_lab_host(project: pytest.Pytester) -> None:
    project.makepyfile("def test_plain(): pass\ndef test_lab(shared): pass")
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*RuntimeError: REMOTE_LAB_URL is not set*"])


@pytest.mark.parametrize("name", ["REQUEST_TIMEOUT", "SESSION_TIMEOUT", "ACQUISITION_TIMEOUT"])
def test_a_time_that_is_none_is_told(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("REMOTE_LAB_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(f"REMOTE_LAB_{name}", "soon")
    project.makepyfile("def test_lab(shared): pass")
    result = project.runpytest_subprocess()
    result.stdout.fnmatch_lines([f"*RuntimeError: REMOTE_LAB_{name} must be a number of seconds above 0, not 'soon'*"])


# Labs


def test_a_shared_lab_is_started_once_and_a_fresh_one_for_every_test(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(
        """
        def test_1(shared): assert [device.name for device in shared] == ["r1"]
        def test_2(router): assert router.raw
        def test_3(fresh): assert [device.name for device in fresh] == ["r1", "r2"]
        def test_4(fresh): pass
        def test_5(shared): pass
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=5)
    assert ups(lab_server) == 3


def test_a_shared_lab_is_down_when_its_last_test_is_done(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        """
        import os, httpx

        def references(client):
            headers = {"X-Session-ID": client.session_id}
            return httpx.get(os.environ["REMOTE_LAB_URL"] + "/lab", headers=headers)

        def test_1(shared, remote_lab_client): assert references(remote_lab_client).json()["ref_count"] == 1
        def test_2(shared, remote_lab_client): assert references(remote_lab_client).json()["ref_count"] == 1
        def test_plain(remote_lab_client):
            answer = references(remote_lab_client)
            assert answer.status_code == 404 or not answer.json()["ref_count"]
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_second_lab_at_run_time_fails_the_test(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(shared, request): request.getfixturevalue('fresh')\ndef test_2(shared): pass")
    result = online.runpytest_subprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["remote lab fresh: the test uses a lab already*"])


def test_a_topology_that_netlab_rejects_is_one_clear_message(online: pytest.Pytester) -> None:
    online.makepyfile("def test_broken(broken): pass\ndef test_good(shared): pass")
    result = online.runpytest_subprocess()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["remote lab broken: *", "*no_such_attribute*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*httpx*")


# The end of a run


@pytest.mark.parametrize(
    ("end", "options", "status"),
    [
        ("assert False", ["-x"], pytest.ExitCode.TESTS_FAILED),
        ("assert False", ["--maxfail=1"], pytest.ExitCode.TESTS_FAILED),
        ("import pytest; pytest.exit('enough')", [], pytest.ExitCode.INTERRUPTED),
        ("raise KeyboardInterrupt", [], pytest.ExitCode.INTERRUPTED),
    ],
    ids=["x", "maxfail", "exit", "interrupt"],
)
@pytest.mark.parametrize("lab", ["shared", "fresh"])
def test_nothing_is_left_however_the_run_ends(
    online: pytest.Pytester, lab: str, end: str, options: list[str], status: int
) -> None:
    online.makepyfile(f"def test_1({lab}):\n    {end}\ndef test_2({lab}): pass")
    assert online.runpytest_subprocess(*options).ret == status


def test_an_internal_error_leaves_nothing(online: pytest.Pytester) -> None:
    online.makeconftest(CONFTEST + "\ndef pytest_runtest_logfinish(): raise ZeroDivisionError")
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass")
    assert online.runpytest_subprocess().ret == pytest.ExitCode.INTERNAL_ERROR


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_ctrl_c_ends_the_session(online: pytest.Pytester, options: list[str]) -> None:
    online.makepyfile(f"def test_1(shared):{BLOCK}")
    process = start(online, *options)
    wait_until(online.path.joinpath("blocked").exists, 30)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in finish(process)
    assert process.returncode == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_ctrl_c_while_waiting_leaves_the_queue(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server):
        process = start(online, *options)
        wait_until(lambda: len(queue(lab_server)) == 2, 30)
        process.send_signal(signal.SIGINT)
        finish(process)
        wait_until(lambda: len(queue(lab_server)) == 1, 20)


@pytest.mark.parametrize(("options", "seconds"), [([], 10), (["-p", "xdist", "-n", "2"], 20)], ids=["alone", "xdist"])
def test_a_session_that_the_server_ends_stops_a_run_that_is_blocked(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], seconds: float
) -> None:
    online.makepyfile(
        f"""
def test_1(shared, remote_lab_client):
    import pathlib
    pathlib.Path("session").write_text(remote_lab_client.session_id)
    {BLOCK}
def test_2(shared): pass
"""
    )
    process = start(online, *options)
    wait_until(online.path.joinpath("blocked").exists, 30)
    ended = time.monotonic()
    httpx.delete(f"{lab_server.url}/session/{online.path.joinpath('session').read_text()}")
    output = finish(process)
    assert time.monotonic() - ended < seconds
    assert "remote lab: the session was ended by the server: " in output
    assert "Traceback" not in output
    assert process.returncode == SESSION_ENDED


def test_a_session_that_is_ended_while_it_waits_stops_the_run(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makeconftest(
        CONFTEST
        + """
from neops_remote_lab.connection import ServerConnection

join = ServerConnection.join

def spied(*arguments):
    session_id = join(*arguments)
    open("session", "w").write(session_id)
    return session_id

ServerConnection.join = spied
"""
    )
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass")
    session = online.path / "session"
    with other_session(lab_server):
        process = start(online)
        wait_until(lambda: session.exists() and session.read_text(), 30)
        httpx.delete(f"{lab_server.url}/session/{session.read_text()}")
        assert "remote lab: the session was ended by the server: " in finish(process)
        assert process.returncode == SESSION_ENDED


# Waiting


def test_a_user_sees_what_the_run_waits_for(
    online: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "2")
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass\ndef test_plain(): pass")
    with other_session(lab_server):
        result = online.runpytest_subprocess()
        assert len(queue(lab_server)) == 1
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(
        ["remote lab: position 1 in the queue, *ann@office*", "remote lab: not active within 2 s: position 1 *"]
    )


def test_a_run_survives_a_restart_of_the_server_while_it_waits(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server):
        process = start(online)
        wait_until(lambda: len(queue(lab_server)) == 2, 30)
        lab_server.kill()
        lab_server.restart()
        assert len(queue(lab_server)) == 2
    assert "1 passed" in finish(process)


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_run_without_a_good_topology_waits_for_nothing(
    online: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "20")
    online.makepyfile("def test_1(broken): pass\ndef test_2(broken): pass\ndef test_plain(): pass")
    with other_session(lab_server):
        result = online.runpytest_subprocess(*options)
        assert len(queue(lab_server)) == 1
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["remote lab broken: *", "*no_such_attribute*"])


def test_a_run_without_a_good_topology_leaves_the_queue_before_its_other_tests(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(f"def test_1(broken): pass\ndef test_plain():{BLOCK}")
    with other_session(lab_server):
        process = start(online)
        wait_until(online.path.joinpath("blocked").exists, 30)
        assert len(queue(lab_server)) == 1
    process.send_signal(signal.SIGINT)
    finish(process)


# A worker of pytest-xdist runs a test only when it knows the next one.
@pytest.mark.parametrize(("options", "early"), [([], 2), (["-p", "xdist", "-n", "2"], 1)], ids=["alone", "xdist"])
def test_a_broken_topology_fails_its_tests_before_the_turn_of_the_others_comes(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], early: int
) -> None:
    online.makeconftest(
        """
import pathlib
from neops_remote_lab.testing.fixture import remote_lab_fixture

broken = remote_lab_fixture("broken.yml")
shared = remote_lab_fixture("shared.yml", reuse_lab=True)

def pytest_runtest_logreport(report):
    if report.failed:
        with open("failed", "a") as file:
            print(report.nodeid, report.longrepr, file=file)
"""
    )
    online.makepyfile("def test_1(shared): pass\ndef test_2(broken): pass\ndef test_3(broken): pass")
    failed = online.path.joinpath("failed")
    with other_session(lab_server):
        process = start(online, *options)
        wait_until(lambda: failed.exists() and failed.read_text().count("no_such_attribute") >= early, 30)
        assert [entry["status"] for entry in queue(lab_server)] == ["active", "waiting"]
    assert "1 passed, 2 errors" in finish(process)


def test_a_topology_that_is_rejected_is_told_at_once(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass\ndef test_2(broken): pass")
    with other_session(lab_server):
        process = start(online)
        assert process.stdout is not None
        told = next(line for line in process.stdout if b"netlab rejects" in line)
        assert told.startswith(b"remote lab: broken.yml: ")
        assert len(queue(lab_server)) == 2
    assert "1 passed, 1 error" in finish(process)


def test_a_client_that_a_conftest_file_brings_is_the_only_one(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makeconftest(
        CONFTEST
        + """
import os
from neops_remote_lab.client import RemoteLabClient

@pytest.fixture(scope="session")
def remote_lab_client():
    with RemoteLabClient(os.environ["REMOTE_LAB_URL"], client="their own") as client:
        yield client
"""
    )
    online.makepyfile(
        f"""
import httpx
def test_1(shared):
    assert [one["client"] for one in httpx.get("{lab_server.url}/queue").json()["sessions"]] == ["their own"]
def test_2(broken): pass
"""
    )
    online.runpytest_subprocess().assert_outcomes(passed=1, errors=1)


# pytest-xdist


def test_the_workers_of_a_run_share_one_session(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        """
        import pathlib, pytest

        @pytest.fixture(autouse=True)
        def note(remote_lab_client, worker_id):
            pathlib.Path(f"{worker_id}.session").write_text(remote_lab_client.session_id)

        @pytest.mark.parametrize("n", range(4))
        def test_shared(shared, n): pass

        @pytest.mark.parametrize("n", range(3))
        def test_fresh(fresh, n): pass
        """
    )
    online.runpytest_subprocess("-p", "xdist", "-n", "2").assert_outcomes(passed=7)
    notes = [path.read_text() for path in online.path.glob("*.session")]
    assert len(notes) == 2
    assert len(set(notes)) == 1
    assert ups(lab_server) >= 4


def test_a_worker_that_crashes_does_not_keep_its_lab(online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LAB_ACQUISITION_TIMEOUT", "20")
    online.makepyfile(
        """
        import os
        def test_1(shared): pass
        def test_2(shared): os._exit(3)
        def test_3(shared): pass
        def test_4(fresh): pass
        """
    )
    result = online.runpytest_subprocess("-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=3, failed=1)
