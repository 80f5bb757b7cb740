"""The pytest plugin as a user sees it: the lab of the first failed test is kept for a while."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neops_remote_lab.client.state import StateDirectory
from tests.fakes import wait_until
from tests.fork_server import Process
from tests.plugin import finish, other_session, queue, start, ups
from tests.server import LabServer
from tests.terminal import CTRL_C, Terminal

WORKERS = ["-p", "xdist", "-n", "2"]
BOTH = pytest.mark.parametrize("options", [[], WORKERS], ids=["alone", "xdist"])
KEEP = "--remote-lab-keep-on-failure=60s"
SUITE = """
import pathlib, pytest

@pytest.fixture
def session(shared):
    yield shared
    pathlib.Path("torn_down").touch()

def test_1(shared): pass
def test_2(session): assert "the first failure" == ""
def test_3(shared): assert "the second failure" == ""
def test_4(shared): pass
def test_plain(): pass
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDirectory:
    """An empty directory for saved sessions."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return StateDirectory()


@pytest.fixture
def suite(online: pytest.Pytester) -> pytest.Pytester:
    online.makepyfile(test_it=SUITE)
    return online


def is_kept(state: StateDirectory) -> bool:
    return bool(list(state))


def kept(process: Process, state: StateDirectory) -> None:
    wait_until(lambda: is_kept(state) or process.poll() is not None, 40, "nothing is kept")
    assert process.poll() is None, finish(process)


def command(*words: str) -> str:
    """Run a command of the program in another shell. Returns its output."""
    argv = [sys.executable, "-m", "neops_remote_lab", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@BOTH
def test_the_lab_of_the_first_failure_can_be_used_until_down(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory, options: list[str]
) -> None:
    process = start(suite, KEEP, *options)
    kept(process, state)
    [saved] = state
    assert (saved.origin, saved.url, saved.yields) == ("pytest", lab_server.url, True)
    assert state.path(saved.url).stat().st_mode & 0o777 == 0o600
    assert "r1" in command("devices")
    assert "kept" in command("exec", "r1", "--", "echo", "kept")
    assert not suite.path.joinpath("torn_down").exists()
    assert "goes on" in command("down")
    output = finish(process)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 3 passed" in output
    assert output.count("remote lab: shared is kept for 60 s") == 1
    assert "remote lab: shared is no longer kept: `neops-remote-lab down` has let it go" in output
    assert not is_kept(state)
    assert ups(lab_server) == 2, "somebody may have changed the lab that was kept"


@BOTH
def test_the_terminal_shows_the_failure_and_how_to_reach_the_lab(
    suite: pytest.Pytester, state: StateDirectory, options: list[str]
) -> None:
    command_line = [sys.executable, "-m", "pytest", KEEP, *options]
    with Terminal(command_line, suite.path, {"XDG_STATE_HOME": str(state.directory.parents[1])}) as terminal:
        terminal.wait_for("Ctrl-C ends the run", 40)
        shown = "\n".join(terminal.lines)
        assert re.search(r"remote lab: test_it.py::test_[23] failed:\n", shown)
        assert re.search(r"assert 'the (first|second) failure' == ''", shown)
        for words in ("console r1", "exec r1 -- COMMAND", "devices", "down "):
            assert terminal.with_text(f"  neops-remote-lab {words}")
        terminal.wait_for("s]: shared is kept for ")
        assert len(terminal.with_text("more: `neops-remote-lab down` lets it go")) == 1
        terminal.press(CTRL_C)
        assert terminal.finish() == pytest.ExitCode.INTERRUPTED
        assert not terminal.with_text("more: `neops-remote-lab down`")
    assert not is_kept(state)


@BOTH
def test_ctrl_c_ends_the_wait_at_once(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory, options: list[str]
) -> None:
    process = start(suite, KEEP, *options)
    kept(process, state)
    process.send_signal(signal.SIGINT)
    finish(process)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert queue(lab_server) == []
    wait_until(lambda: not is_kept(state), 10)


def test_a_cancelled_job_ends_the_wait_at_once(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory
) -> None:
    process = start(suite, KEEP)
    kept(process, state)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert queue(lab_server) == []
    assert not is_kept(state)


@BOTH
def test_another_waiting_session_ends_the_wait(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory, options: list[str]
) -> None:
    process = start(suite, KEEP, *options)
    kept(process, state)
    with other_session(lab_server):
        output = finish(process)
    assert "remote lab: shared is no longer kept: 1 other session waits for the lab host" in output
    assert "2 failed, 3 passed" in output


def test_nothing_is_kept_while_another_session_waits(
    online: pytest.Pytester, lab_server: LabServer, state: StateDirectory
) -> None:
    online.makepyfile(
        test_it="""
        import pathlib, threading
        def test_1(shared):
            pathlib.Path("blocked").touch()
            while not pathlib.Path("go").exists(): threading.Event().wait(0.05)
            assert False
        def test_2(shared): pass
        """
    )
    process = start(online, KEEP)
    wait_until(online.path.joinpath("blocked").exists, 30)
    with other_session(lab_server):
        online.path.joinpath("go").touch()
        output = finish(process)
    assert "remote lab: shared is not kept: 1 other session waits for the lab host" in output
    assert "is kept for" not in output
    assert not is_kept(state)
    assert "1 failed, 1 passed" in output
    assert ups(lab_server) == 1


@pytest.mark.parametrize("options", [["-x"], ["--maxfail=1"], ["--sw"], []], ids=["x", "maxfail", "sw", "none"])
def test_the_wait_ends_after_its_time(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p neops_remote_lab.testing.plugin")
    result = suite.runpytest_subprocess("--remote-lab-keep-on-failure=2s", *options)
    result.stdout.fnmatch_lines(["remote lab: shared is no longer kept: the time is over"])
    if options:
        result.assert_outcomes(failed=1, passed=1)
    else:
        result.assert_outcomes(failed=2, passed=3)


def test_a_fresh_lab_is_kept_too(online: pytest.Pytester, lab_server: LabServer, state: StateDirectory) -> None:
    online.makepyfile(test_it="def test_1(fresh): assert False\ndef test_2(fresh): pass")
    process = start(online, KEEP)
    kept(process, state)
    assert "r2" in command("devices")
    command("down")
    assert "1 failed, 1 passed" in finish(process)
    assert ups(lab_server) == 2


def test_an_error_in_another_fixture_keeps_the_lab(online: pytest.Pytester) -> None:
    online.makepyfile(
        test_it="import pytest\n@pytest.fixture\ndef wrong(shared): raise ValueError\ndef test_1(wrong): pass"
    )
    result = online.runpytest_subprocess("--remote-lab-keep-on-failure=1s")
    result.stdout.fnmatch_lines(["remote lab: shared is kept for 1 s, *"])


@pytest.mark.parametrize(
    "source",
    [
        "def test_1(shared): pass\ndef test_2(): assert False",
        "import pytest\n@pytest.mark.xfail\ndef test_1(shared): assert False",
        "def test_1(broken): pass",
        "import pytest\ndef test_1(shared): pytest.skip()",
    ],
    ids=["plain", "xfail", "failed lab", "skipped"],
)
def test_only_failed_lab_tests_keep_their_lab(online: pytest.Pytester, source: str) -> None:
    online.makepyfile(test_it=source)
    online.runpytest_subprocess(KEEP).stdout.no_fnmatch_line("*kept*")


def test_the_session_of_a_run_that_was_killed_can_be_ended(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory
) -> None:
    process = start(suite, KEEP)
    kept(process, state)
    process.kill()
    finish(process)
    assert "the session has ended" in command("down")
    assert queue(lab_server) == []
    assert not is_kept(state)


# Other plugins


def test_an_attempt_that_will_be_repeated_keeps_no_lab(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(test_it="def test_1(fresh): assert False")
    result = online.runpytest_subprocess(
        "-p", "pytest_rerunfailures", "--reruns", "2", "--remote-lab-keep-on-failure=1s"
    )
    assert ups(lab_server) == 3
    assert result.stdout.str().count("fresh is kept for") == 1
    assert result.stdout.str().count("remote lab: test_it.py::test_1 failed:") == 1


@pytest.mark.parametrize("artifacts", ["on", "off"])
def test_the_limit_of_pytest_timeout_does_not_apply_while_a_lab_is_kept(
    online: pytest.Pytester, artifacts: str
) -> None:
    online.makepyfile(
        test_it="import pytest\n@pytest.mark.xfail(strict=True)\ndef test_1(shared): pass\ndef test_2(shared): pass"
    )
    result = online.runpytest_subprocess(
        *[
            "-p",
            "pytest_timeout",
            "--timeout=3",
            "--remote-lab-keep-on-failure=5s",
            f"--remote-lab-artifacts={artifacts}",
        ]
    )
    result.stdout.fnmatch_lines(["remote lab: shared is no longer kept: the time is over"])
    result.assert_outcomes(failed=1, passed=1)


def test_the_debugger_keeps_the_lab_for_as_long_as_it_runs(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory
) -> None:
    command_line = [sys.executable, "-m", "pytest", "--pdb", KEEP]
    with Terminal(command_line, suite.path, {"XDG_STATE_HOME": str(state.directory.parents[1])}) as terminal:
        terminal.wait_for("(Pdb)", 40)
        assert terminal.with_text("remote lab: shared is kept while the debugger runs:")
        assert terminal.with_text("  neops-remote-lab console r1")
        assert len(terminal.with_text("E   AssertionError: assert 'the first failure'")) == 1
        assert is_kept(state)
        terminal.press(b"c\n")
        terminal.wait_for("the second failure")
        wait_until(lambda: not is_kept(state), 10)
        terminal.press(b"c\n")
        assert terminal.finish() == pytest.ExitCode.TESTS_FAILED
        assert not terminal.with_text("no longer kept")


# Settings


def test_the_flag_alone_means_half_an_hour(
    suite: pytest.Pytester, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(suite, "--remote-lab-keep-on-failure")
    kept(process, state)
    command("down")
    assert "remote lab: shared is kept for 30 min" in finish(process)


@pytest.mark.parametrize("value", ["soon", "30", "m", "-1s", "1.5h"])
def test_a_duration_needs_a_unit(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    project.makepyfile(test_it="def test_1(shared): pass")
    monkeypatch.setenv("REMOTE_LAB_KEEP_ON_FAILURE", value)
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*REMOTE_LAB_KEEP_ON_FAILURE must be a duration such as 90s*, not '{value}'"])


def test_a_path_after_the_flag_is_not_used_as_a_duration(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_1(): pass")
    result = project.runpytest_subprocess("--remote-lab-keep-on-failure", "test_it.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*must be a duration such as 90s*write it as =30m*, not 'test_it.py'"])


def test_a_saved_session_of_up_with_the_same_server_is_kept(
    suite: pytest.Pytester, lab_server: LabServer, state: StateDirectory
) -> None:
    process = start(suite, KEEP)
    kept(process, state)
    [saved] = state
    state.save(saved.model_copy(update={"origin": "up", "keeper": None, "session_id": "another"}))
    output = finish(process)
    assert "has let it go" in output
    assert [other.session_id for other in state] == ["another"]
