"""The pytest plugin as a user sees it: waiting in the queue."""

from __future__ import annotations

import signal

import pytest

from neops_remote_lab import __version__
from tests.fakes import wait_until
from tests.plugin import BLOCK, CONFTEST, finish, other_session, queue, start
from tests.server import LabServer


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


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_the_version_of_the_server_is_shown_when_the_session_is_active(
    online: pytest.Pytester, options: list[str]
) -> None:
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass\ndef test_3(fresh): pass")
    lines = online.runpytest_subprocess(*options).outlines
    assert lines.count(f"remote lab: it is our turn, at a server of version {__version__}") == 1


def test_every_change_of_position_is_shown(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server), other_session(lab_server):
        with other_session(lab_server):
            process = start(online)
            assert process.stdout is not None
            lines = (line.decode() for line in process.stdout if line.startswith(b"remote lab: "))
            assert "joining" in next(lines)
            assert "position 3 " in next(lines)
        assert "position 2 " in next(lines)
    assert "1 passed" in finish(process)


def test_labels_of_others_cannot_forge_lines_of_the_run(
    online: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "2")
    online.makepyfile("def test_1(shared): pass")
    online.makeconftest(
        CONFTEST
        + """
from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.testing import session

class Client(RemoteLabClient):
    def __init__(self, *arguments, on_status, **options):
        def forged(status):
            on_status(status.model_copy(update={"waiting_for": "x\\n\\x1b[31mforged"}))
        super().__init__(*arguments, on_status=forged, **options)

session.RemoteLabClient = Client
"""
    )
    with other_session(lab_server):
        result = online.runpytest_subprocess()
    output = result.stdout.str()
    assert "\x1b[31m" not in output
    assert "\nforged" not in output
    assert r"x\n\x1b[31mforged" in output


def test_a_run_survives_a_restart_of_the_server_while_it_waits(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server):
        process = start(online)
        wait_until(lambda: len(queue(lab_server)) == 2, 30)
        lab_server.kill()
        lab_server.restart()
        assert len(queue(lab_server)) == 2
    assert "1 passed" in finish(process)


@pytest.mark.usefixtures("slow_check")
@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_run_without_a_valid_topology_does_not_wait(
    online: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("REMOTE_LAB_SESSION_TIMEOUT", "20")
    online.makepyfile("def test_1(broken): pass\ndef test_2(broken): pass\ndef test_plain(): pass")
    with other_session(lab_server):
        result = online.runpytest_subprocess(*options)
        assert len(queue(lab_server)) == 1
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["remote lab broken: *", "*no_such_attribute*"])


def test_a_run_without_a_valid_topology_leaves_the_queue_before_its_other_tests(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(f"def test_1(broken): pass\ndef test_plain():{BLOCK}")
    with other_session(lab_server):
        process = start(online)
        wait_until(online.path.joinpath("blocked").exists, 30)
        assert len(queue(lab_server)) == 1
    process.send_signal(signal.SIGINT)
    finish(process)


@pytest.fixture
def slow_check(online: pytest.Pytester, lab_server: LabServer) -> None:
    """Let the check of a topology take longer."""
    lab_server.fake.control(create_seconds=2.5)


# A worker of pytest-xdist runs a test only after it has received the next one.
@pytest.mark.usefixtures("slow_check")
@pytest.mark.parametrize(("options", "early"), [([], 2), (["-p", "xdist", "-n", "2"], 1)], ids=["alone", "xdist"])
def test_tests_of_a_rejected_topology_fail_before_the_session_is_active(
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


@pytest.mark.usefixtures("slow_check")
def test_a_rejected_topology_is_reported_at_once(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass\ndef test_2(broken): pass")
    with other_session(lab_server):
        process = start(online)
        assert process.stdout is not None
        reported = next(line for line in process.stdout if b"netlab rejects" in line)
        assert reported.startswith(b"remote lab: broken.yml: ")
        assert len(queue(lab_server)) == 2
    assert "1 passed, 1 error" in finish(process)


def test_an_active_session_does_not_wait_for_a_check(online: pytest.Pytester, lab_server: LabServer) -> None:
    lab_server.fake.control(hang="create")
    with other_session(lab_server):
        online.makepyfile(
            f"""
            import pathlib
            from neops_remote_lab.client import RemoteLabClient

            def test_join():
                with RemoteLabClient("{lab_server.url}", topologies=[pathlib.Path("shared.yml")]): pass
            """
        )
        process = start(online)
        wait_until(lambda: lab_server.fake.invocations("create"), 30)
    assert "1 passed" in finish(process)


def test_a_client_from_a_conftest_file_is_the_only_one(online: pytest.Pytester, lab_server: LabServer) -> None:
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
