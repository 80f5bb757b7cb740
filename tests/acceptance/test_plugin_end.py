"""The pytest plugin as a user sees it: a run leaves nothing behind, regardless of its end."""

from __future__ import annotations

import signal

import httpx
import pytest

from neops_remote_lab.testing.interrupt import SESSION_ENDED
from tests.fakes import wait_until
from tests.plugin import BLOCK, CONFTEST, finish, other_session, queue, start
from tests.server import LabServer


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
def test_a_run_leaves_nothing_behind_regardless_of_its_end(
    online: pytest.Pytester, lab: str, end: str, options: list[str], status: int
) -> None:
    online.makepyfile(f"def test_1({lab}):\n    {end}\ndef test_2({lab}): pass")
    assert online.runpytest_subprocess(*options).ret == status


def test_an_internal_error_leaves_nothing_behind(online: pytest.Pytester) -> None:
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


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_session_that_the_server_ends_stops_a_blocked_run(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
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
    httpx.delete(f"{lab_server.url}/session/{online.path.joinpath('session').read_text()}")
    output = finish(process)
    assert not online.path.joinpath("woke").exists()
    assert "remote lab: the session was ended by the server: " in output
    assert "Traceback" not in output
    assert process.returncode == SESSION_ENDED


def test_a_session_that_is_ended_while_it_waits_stops_the_run(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makeconftest(
        CONFTEST
        + """
from neops_remote_lab.client.connection import ServerConnection

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


# Signals


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_cancelled_job_ends_its_session_before_its_teardown(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], number: signal.Signals
) -> None:
    online.makepyfile(
        f"""
import pathlib, pytest, threading

@pytest.fixture
def slow_to_leave():
    yield
    while not pathlib.Path("go").exists(): threading.Event().wait(0.05)

def test_1(shared, slow_to_leave):{BLOCK}
"""
    )
    process = start(online, *options)
    wait_until(online.path.joinpath("blocked").exists, 30)
    process.send_signal(number)
    wait_until(lambda: queue(lab_server) == [], 30, "the session goes on")
    online.path.joinpath("go").touch()
    output = finish(process)
    assert process.returncode == 128 + number
    assert "ended by the server" not in output


def test_a_job_that_is_cancelled_in_the_queue_leaves_the_queue(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server):
        process = start(online)
        wait_until(lambda: len(queue(lab_server)) == 2, 30)
        process.send_signal(signal.SIGTERM)
        finish(process)
        assert len(queue(lab_server)) == 1


def test_a_signal_handler_of_the_user_is_not_replaced(online: pytest.Pytester) -> None:
    online.makeconftest(
        CONFTEST
        + """
import pathlib, signal
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("handled").touch())
signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""
    )
    online.makepyfile(
        """
        import os, pathlib, signal
        def test_1(shared):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert pathlib.Path("handled").exists()
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_signal_ends_a_run_without_labs_as_usual(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(f"def test_1():{BLOCK}")
    process = start(project, *options)
    wait_until(project.path.joinpath("blocked").exists, 30)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == -signal.SIGTERM
