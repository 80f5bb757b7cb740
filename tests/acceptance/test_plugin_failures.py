"""The pytest plugin as a user sees it: a failed lab is not a failed test."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from neops_remote_lab.cli.command import ExitStatus
from neops_remote_lab.testing.failures import EXIT_STATUS
from tests.plugin import other_session, ups
from tests.server import LabServer

WORKERS = ["-p", "xdist", "-n", "2"]
BOTH = pytest.mark.parametrize("options", [[], WORKERS], ids=["alone", "xdist"])


@pytest.fixture
def failing(online: pytest.Pytester, lab_server: LabServer) -> pytest.Pytester:
    """A project whose labs fail to start."""
    lab_server.fake.control(fail="config")
    return online


def properties(project: pytest.Pytester) -> dict[str, dict[str, str]]:
    """The properties of each test in JUnit XML, by its name."""
    cases = ElementTree.parse(project.path / "junit.xml").iter("testcase")  # noqa: S314 - pytest has written it
    return {
        case.attrib["name"]: {one.attrib["name"]: one.attrib["value"] for one in case.iter("property")}
        for case in cases
    }


@BOTH
def test_a_failed_lab_has_its_own_word_and_section(failing: pytest.Pytester, options: list[str]) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass\ndef test_2(shared): pass\ndef test_plain(): assert False")
    result = failing.runpytest_subprocess(*options)
    result.assert_outcomes(errors=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*= FAILURES =*",
            "*_ test_plain _*",
            "*= LAB FAILED =*",
            "*_ LAB FAILED at setup of test_* _*",
            "remote lab shared: *POST /lab: 500: *",
            "*_ LAB FAILED at setup of test_* _*",
            "remote lab shared: *POST /lab: 500: *",
            "*= short test summary info =*",
            "LAB FAILED *::test_* - remote lab shared: *",
        ]
    )
    result.stdout.fnmatch_lines_random(  # workers report in any order
        [
            "remote lab shared: POST /lab: 500: *",
            "Deploying initial device configurations",
            "remote lab shared: not started again: POST /lab: 500: *",
        ]
    )
    result.stdout.no_fnmatch_line("*= ERRORS =*")
    result.stdout.no_fnmatch_line("*Traceback*")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("option", ["--full-trace", "--tb=native", "-vv", "-l", "--tb=short"])
def test_a_failed_lab_shows_no_traceback(failing: pytest.Pytester, option: str) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass")
    output = failing.runpytest_subprocess(option).stdout
    output.fnmatch_lines(["*remote lab shared: POST /lab: 500: *"])
    for sign in ("*Traceback*", "*holder.py*", "*raise LabFailed*", "*def lab(*"):
        output.no_fnmatch_line(sign)


@pytest.mark.parametrize("option", ["--tb=no", "--no-summary"])
def test_the_section_can_be_disabled(failing: pytest.Pytester, option: str) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass")
    result = failing.runpytest_subprocess(option)
    result.stdout.no_fnmatch_line("*= LAB FAILED =*")
    result.assert_outcomes(errors=1)


def test_other_errors_stay_in_the_section_of_pytest(failing: pytest.Pytester) -> None:
    failing.makepyfile(
        test_it="import pytest\n@pytest.fixture\ndef wrong(): raise ValueError('mine')\n"
        "def test_1(shared): pass\ndef test_2(wrong): pass"
    )
    result = failing.runpytest_subprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*= ERRORS =*", "*ERROR at setup of test_2*", "*= LAB FAILED =*", "*2 errors*"])
    result.stdout.fnmatch_lines(["ERROR *::test_2 - ValueError: mine"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_failed_labs_have_their_own_letter(failing: pytest.Pytester) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass\ndef test_plain(): pass")
    failing.runpytest_subprocess("-v").stdout.fnmatch_lines(["*::test_1 LAB FAILED*", "*::test_plain PASSED*"])
    failing.runpytest_subprocess().stdout.fnmatch_lines(["L", "test_it.py .*"])


# Exit status


@BOTH
def test_failed_labs_alone_have_their_own_exit_status(failing: pytest.Pytester, options: list[str]) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass\ndef test_2(shared): pass\ndef test_plain(): pass")
    assert failing.runpytest_subprocess(*options).ret == EXIT_STATUS == int(ExitStatus.NO_LAB)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("def test_1(broken): pass\ndef test_2(broken): pass", []),
        ("def test_1(fresh): pass\ndef test_2(fresh): pass", ["-x"]),
        ("def test_1(fresh): pass\ndef test_2(fresh): pass", ["--maxfail=1"]),
        ("import pytest\n@pytest.mark.xfail\ndef test_1(fresh): pass", []),
        ("import pytest\n@pytest.mark.xfail(strict=True)\ndef test_1(fresh): pass", []),
    ],
    ids=["rejected", "x", "maxfail", "xfail", "strict xfail"],
)
def test_an_exit_status_of_another_failure_has_priority(
    failing: pytest.Pytester, source: str, options: list[str]
) -> None:
    failing.makepyfile(test_it=source)
    result = failing.runpytest_subprocess(*options)
    assert result.ret == EXIT_STATUS
    result.stdout.fnmatch_lines(["LAB FAILED *::test_1*"])


def test_a_timeout_in_the_queue_is_a_failed_lab(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(test_it="def test_1(shared): pass")
    with other_session(lab_server):
        result = online.runpytest_subprocess("--remote-lab-session-timeout=1")
    assert result.ret == EXIT_STATUS
    result.stdout.fnmatch_lines(["LAB FAILED *::test_1 - remote lab: not active within 1 s: *"])


def test_a_missing_address_is_not_a_failed_lab(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_1(shared): pass")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*= ERRORS =*"])


def test_a_second_lab_at_run_time_is_not_a_failed_lab(online: pytest.Pytester) -> None:
    online.makepyfile(test_it="def test_1(shared, request): request.getfixturevalue('fresh')")
    assert online.runpytest_subprocess().ret == pytest.ExitCode.TESTS_FAILED


def test_last_failed_and_stepwise_count_failed_labs(
    failing: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p neops_remote_lab.testing.plugin")
    failing.makepyfile(test_it="def test_1(fresh): pass\ndef test_2(fresh): pass\ndef test_plain(): pass")
    assert failing.runpytest_subprocess("--sw").parseoutcomes() == {"errors": 1}
    lab_server.fake.control()
    failing.runpytest_subprocess("--lf").assert_outcomes(passed=1)
    failing.runpytest_subprocess("--sw").assert_outcomes(passed=3)


# JUnit


@BOTH
def test_failed_labs_have_properties_in_junit_xml(failing: pytest.Pytester, options: list[str]) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass\ndef test_2(shared): pass\ndef test_plain(): pass")
    failing.runpytest_subprocess("--junit-xml=junit.xml", *options)
    found = properties(failing)
    for test in ("test_1", "test_2"):
        assert found[test]["remote_lab"] == "failed"
        assert found[test]["remote_lab_reason"].startswith("POST /lab: 500: ")
        assert "netlab initial" in found[test]["remote_lab_reason"]
    assert not {"remote_lab", "remote_lab_reason"} & found["test_plain"].keys()


def test_a_repeated_test_whose_lab_starts_is_not_a_failed_lab(online: pytest.Pytester, lab_server: LabServer) -> None:
    lab_server.fake.control(fail="config", fail_times=1)
    online.makepyfile(test_it="def test_1(shared): pass")
    result = online.runpytest_subprocess("-p", "pytest_rerunfailures", "--reruns", "1", "--junit-xml=junit.xml")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.OK
    assert "remote_lab" not in properties(online)["test_1"]
    result.stdout.no_fnmatch_line("*LAB FAILED*")


# Retries


@BOTH
@pytest.mark.parametrize("lab", ["shared", "fresh"])
def test_a_lab_that_failed_to_start_is_started_again(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], lab: str
) -> None:
    lab_server.fake.control(fail="config", fail_times=2)
    online.makepyfile(test_it=f"def test_1({lab}): pass")
    result = online.runpytest_subprocess("--remote-lab-retries=2", *options)
    result.assert_outcomes(passed=1)
    assert ups(lab_server) == 3
    result.stdout.fnmatch_lines(
        [f"remote lab: {lab}: POST /lab: 500: *: starting the lab again, {attempt} of 2" for attempt in (1, 2)]
    )


def test_the_number_of_retries_is_limited(failing: pytest.Pytester, lab_server: LabServer) -> None:
    failing.makepyfile(test_it="def test_1(shared): pass\ndef test_2(shared): pass")
    result = failing.runpytest_subprocess("--remote-lab-retries=1")
    assert result.ret == EXIT_STATUS
    assert ups(lab_server) == 2


def test_a_rejected_topology_is_never_retried(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(test_it="def test_1(broken): pass\ndef test_2(shared): pass")
    result = online.runpytest_subprocess("--remote-lab-retries=3")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.no_fnmatch_line("*the lab again*")


def test_the_number_of_retries_is_validated(online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LAB_RETRIES", "-1")
    online.makepyfile(test_it="def test_1(shared): pass\ndef test_2(shared): pass")
    result = online.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert text.count("REMOTE_LAB_RETRIES must be a whole number") == 1
