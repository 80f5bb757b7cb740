"""The pytest plugin's output on a terminal and in a CI log while a run waits."""

from __future__ import annotations

import re
import sys

import pytest

from tests.fakes import wait_until
from tests.plugin import CONFTEST, finish, other_session, queue, start
from tests.server import LabServer
from tests.terminal import CTRL_C, Terminal

WORKERS = ["-p", "xdist", "-n", "2", "--dist", "loadfile"]
OFTEN = """
from neops_remote_lab.client import progress
progress.REPEAT_AFTER = 1
"""


def on_terminal(
    project: pytest.Pytester, *arguments: str, columns: int = 120, environment: dict[str, str] | None = None
) -> Terminal:
    return Terminal([sys.executable, "-m", "pytest", *arguments], project.path, environment, columns)


def seconds_shown(terminal: Terminal) -> set[bytes]:
    """The waiting times in the status line so far. On a busy machine some are missing."""
    return set(re.findall(rb"remote lab \[(\d+) s\]: position 1 in the queue, ", terminal.written))


@pytest.mark.parametrize("arguments", [[], ["-s"], ["-v"], ["--capture=sys"], WORKERS], ids=" ".join)
def test_a_terminal_has_one_status_line_that_is_removed_at_the_end(
    online: pytest.Pytester, lab_server: LabServer, arguments: list[str]
) -> None:
    online.makepyfile("def test_1(shared): print('captured')\ndef test_plain(): pass")
    with on_terminal(online, *arguments) as terminal:
        with other_session(lab_server):
            terminal.wait_for("s]: position 1 in the queue, ")
            wait_until(lambda: len(seconds_shown(terminal)) >= 3, 60, "the time does not go on")
            assert len(terminal.with_text("position 1")) == 1
            assert terminal.lines[-1].startswith("remote lab [")
            assert "ann@office" in terminal.lines[-1]
        assert terminal.finish() == 0
        assert terminal.with_text("2 passed")
        assert not terminal.with_text("position")
        assert ("captured" in " ".join(terminal.lines)) == (arguments == ["-s"])
    changes = re.findall(rb"\r(.*?)\x1b\[K", terminal.written)
    assert len([change for change in changes if b"position 1" in change]) >= 3
    assert changes.count(b"") <= 2, "the line is removed where it could be rewritten"


@pytest.mark.parametrize("arguments", [[], WORKERS], ids=["alone", "xdist"])
def test_a_terminal_shows_the_phases_of_a_start(
    online: pytest.Pytester, lab_server: LabServer, arguments: list[str]
) -> None:
    lab_server.fake.control(start_seconds=3, config_seconds=3)
    online.makepyfile("def test_1(shared): pass")
    with on_terminal(online, *arguments) as terminal:
        terminal.wait_for("s]: shared: starting clab nodes")
        terminal.wait_for("s]: shared: deploying initial device configurations")
        assert len(terminal.with_text("shared: ")) == 1
        assert terminal.finish() == 0
        assert not terminal.with_text("shared: ")


def test_the_status_line_fits_into_a_narrow_terminal(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile("def test_1(shared): pass")
    with on_terminal(online, columns=50) as terminal:
        with other_session(lab_server):
            terminal.wait_for("s]: position 1 in the queue")
            assert len(terminal.with_text("position 1")) == 1
            assert terminal.lines[-1].endswith("…")
        assert terminal.finish() == 0


@pytest.mark.parametrize("variables", [{"CI": "true"}, {"TERM": "dumb"}], ids=["ci", "dumb"])
def test_a_terminal_in_a_ci_job_is_used_as_a_log(
    online: pytest.Pytester, lab_server: LabServer, variables: dict[str, str]
) -> None:
    online.makepyfile("def test_1(shared): pass")
    with on_terminal(online, environment=variables) as terminal:
        with other_session(lab_server):
            terminal.wait_for("remote lab: position 1 in the queue")
        assert terminal.finish() == 0
        assert terminal.with_text("remote lab: position 1 in the queue")
    assert b"\r\x1b" not in terminal.written


@pytest.mark.parametrize("arguments", [[], WORKERS], ids=["alone", "xdist"])
def test_ctrl_c_in_the_queue_removes_the_status_line(
    online: pytest.Pytester, lab_server: LabServer, arguments: list[str]
) -> None:
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server), on_terminal(online, *arguments) as terminal:
        terminal.wait_for("position 1 in the queue")
        terminal.press(CTRL_C)
        assert terminal.finish() == pytest.ExitCode.INTERRUPTED
        assert not terminal.with_text("position 1")
        wait_until(lambda: len(queue(lab_server)) == 1, 20)


# Logs


@pytest.mark.parametrize("arguments", [[], ["-s"], ["-p", "no:terminal"], WORKERS], ids=" ".join)
def test_a_log_gets_a_line_each_minute(online: pytest.Pytester, lab_server: LabServer, arguments: list[str]) -> None:
    online.makeconftest(CONFTEST + OFTEN)
    online.makepyfile("def test_1(shared): pass")
    with other_session(lab_server):
        process = start(online, *arguments)
        assert process.stdout is not None
        lines = (line.decode() for line in process.stdout if line.startswith(b"remote lab"))
        assert "joining the queue" in next(lines)
        assert next(lines).startswith("remote lab: position 1 in the queue, ")
        for _ in range(2):
            assert re.match(r"remote lab \[\d+ s\]: position 1 in the queue, .*ann@office", next(lines))
    output = finish(process)
    assert process.returncode == 0
    assert "\r" not in output
    assert "\x1b" not in output


def test_a_log_gets_a_line_for_each_phase_of_a_start(online: pytest.Pytester, lab_server: LabServer) -> None:
    lab_server.fake.control(start_seconds=2, config_seconds=2)
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass")
    output = online.runpytest_subprocess().stdout
    output.fnmatch_lines(
        ["remote lab: shared: starting clab nodes", "remote lab: shared: deploying initial device configurations"]
    )
    assert output.str().count("shared: starting") == 1


def test_a_fast_start_is_not_shown(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(fresh): pass\ndef test_2(fresh): pass")
    online.runpytest_subprocess().stdout.no_fnmatch_line("*fresh: *")


# Workers


@pytest.fixture
def with_plain_tests(online: pytest.Pytester) -> pytest.Pytester:
    """A suite in which one worker waits for the lab while the other one runs tests without a lab."""
    online.path.joinpath("test_lab.py").write_text(
        "def test_1(shared): pass\ndef test_2(fresh): pass\n", encoding="utf-8"
    )
    online.path.joinpath("test_plain.py").write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('n', range(30))\n"
        "def test_plain(n): time.sleep(0.1 if n < 25 else 1.5)\n",
        encoding="utf-8",
    )
    return online


def test_the_controller_shows_each_message_once(with_plain_tests: pytest.Pytester, lab_server: LabServer) -> None:
    with_plain_tests.makeconftest(CONFTEST + OFTEN)
    with other_session(lab_server):
        process = start(with_plain_tests, *WORKERS)
        assert process.stdout is not None
        lines: list[str] = []
        while not re.match(r"remote lab \[[5-9] s\]", lines[-1] if lines else ""):
            lines.append(process.stdout.readline().decode())
    lines += finish(process).splitlines()
    messages = [line for line in lines if "remote lab" in line]
    assert all(line.startswith("remote lab") for line in messages), lines
    assert len([line for line in messages if "joining the queue" in line]) == 1
    assert len([line for line in messages if line.startswith("remote lab: position 1 ")]) == 1
    assert sum(line.count(".") for line in lines if re.fullmatch(r"[. ]+(\[ *\d+%\])?\s*", line)) == 32, lines
    assert "32 passed" in lines[-1]


@pytest.mark.parametrize("arguments", [[], ["-v"]], ids=["dots", "verbose"])
def test_the_status_line_does_not_disturb_the_output_of_pytest(
    with_plain_tests: pytest.Pytester, lab_server: LabServer, arguments: list[str]
) -> None:
    with on_terminal(with_plain_tests, *WORKERS, *arguments) as terminal:
        with other_session(lab_server):
            assert len(terminal.wait_for_lines("]: position 1 in the queue", 60)) == 1
        assert terminal.finish() == 0
        assert not terminal.with_text("position 1")
        assert terminal.with_text("32 passed")
        if arguments:
            assert len(terminal.with_text("PASSED")) == 32
            assert all(line.endswith(" ") or "::" in line for line in terminal.with_text("PASSED"))
        else:
            rows = [line for line in terminal.lines if re.fullmatch(r"[. ]+(\[ *\d+%\])?", line)]
            assert sum(row.count(".") for row in rows) == 32, terminal.lines
