"""The pytest plugin as a user sees it: flags, environment variables and ini keys."""

from __future__ import annotations

import pytest

from neops_remote_lab import __version__
from neops_remote_lab.testing import options
from tests.plugin import queue
from tests.server import LabServer


def write_ini(project: pytest.Pytester, *lines: str) -> None:
    project.makeini("\n".join(["[pytest]", *lines]))


def test_a_flag_overrides_a_variable_and_a_variable_an_ini_key(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ini(project, "remote_lab_url = http://ini:8000")
    project.runpytest_subprocess().stdout.fnmatch_lines(
        ["neops-remote-lab: *, lab host http://ini:8000 (the ini key remote_lab_url)"]
    )
    monkeypatch.setenv("REMOTE_LAB_URL", "http://variable:8000")
    project.runpytest_subprocess().stdout.fnmatch_lines(
        ["neops-remote-lab: *, lab host http://variable:8000 (REMOTE_LAB_URL)"]
    )
    result = project.runpytest_subprocess("--remote-lab-url=http://flag:8000")
    result.stdout.fnmatch_lines(["neops-remote-lab: *, lab host http://flag:8000 (--remote-lab-url)"])
    result = project.runpytest_subprocess("--remote-lab-url=")
    result.stdout.fnmatch_lines(["neops-remote-lab: *, lab host http://variable:8000 (REMOTE_LAB_URL)"])


def test_the_header_shows_no_credentials_and_sends_no_request(project: pytest.Pytester) -> None:
    project.makepyfile("def test_1(shared): pass")
    result = project.runpytest_subprocess("--collect-only", "--remote-lab-url", "https://ann:s3cret@lab.invalid")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([f"neops-remote-lab: {__version__}, lab host https://lab.invalid (--remote-lab-url)"])
    assert "s3cret" not in result.stdout.str()


def test_a_run_without_a_lab_host_has_no_header(project: pytest.Pytester) -> None:
    project.runpytest_subprocess().stdout.no_fnmatch_line("neops-remote-lab:*")


@pytest.mark.parametrize("arguments", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_run_needs_no_variable(
    online: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.delenv("REMOTE_LAB_URL")
    online.makepyfile("def test_1(shared): pass\ndef test_2(fresh): pass")
    online.runpytest_subprocess(f"--remote-lab-url={lab_server.url}", *arguments).assert_outcomes(passed=2)
    write_ini(online, f"remote_lab_url = {lab_server.url}")
    online.runpytest_subprocess(*arguments).assert_outcomes(passed=2)
    assert queue(lab_server) == []


def test_pyproject_may_hold_settings(project: pytest.Pytester) -> None:
    project.makepyprojecttoml(
        """
        [tool.pytest.ini_options]
        remote_lab_url = "http://lab.invalid:9"
        remote_lab_session_timeout = 0
        """
    )
    project.makepyfile("def test_1(shared): pass")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*the ini key remote_lab_session_timeout must be a number of seconds above 0, not '0'*"]
    )


# Wrong values


def test_an_invalid_flag_is_refused_at_once(project: pytest.Pytester) -> None:
    project.makepyfile("def test_plain(): pass")
    result = project.runpytest_subprocess("--remote-lab-session-timeout=soon")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*argument --remote-lab-session-timeout: must be a number of seconds above 0, not 'soon'"]
    )


@pytest.mark.parametrize(
    ("ini", "flags", "message"),
    [
        ("remote_lab_url = lab", [], "the ini key remote_lab_url lacks the scheme"),
        ("", ["--remote-lab-url=lab"], "--remote-lab-url lacks the scheme"),
        ("remote_lab_token = two words", [], "the ini key remote_lab_token has a space"),
        ("", ["--remote-lab-token=two words"], "--remote-lab-token has a space"),
        ("remote_lab_ca_file = no.pem", [], "the ini key remote_lab_ca_file names a file that cannot be read"),
        ("", ["--remote-lab-client-cert=no.pem"], "--remote-lab-client-cert names a file that cannot be read"),
        ("", ["--remote-lab-client-key=no.pem"], "--remote-lab-client-key is set without REMOTE_LAB_CLIENT_CERT"),
        (
            "remote_lab_token = t0k",
            ["--remote-lab-url=https://ann:pw@lab"],
            "--remote-lab-url holds a user name, and the ini key remote_lab_token is set",
        ),
    ],
)
def test_an_invalid_value_is_one_usage_error_that_names_its_source(
    project: pytest.Pytester, ini: str, flags: list[str], message: str
) -> None:
    project.makepyfile("def test_1(shared): pass\ndef test_2(fresh): pass")
    usual = [] if any("url" in text for text in (ini, *flags)) else ["--remote-lab-url=https://lab.invalid:9"]
    write_ini(project, ini)
    result = project.runpytest_subprocess(*usual, *flags)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (result.stdout.str() + result.stderr.str()).count(message) == 1
    result.stdout.no_fnmatch_line("*Traceback*")


def test_paths_in_an_ini_file_are_relative_to_it(project: pytest.Pytester) -> None:
    write_ini(project, "remote_lab_ca_file = certificates/ca.pem", "remote_lab_url = https://lab.invalid:9")
    project.mkdir("sub").joinpath("test_1.py").write_text("def test_1(shared): pass")
    result = project.runpytest_subprocess("sub")
    result.stdout.fnmatch_lines(
        [f"*remote_lab_ca_file names a file that cannot be read: '{project.path}/certificates/*"]
    )


def test_help_shows_every_setting(project: pytest.Pytester) -> None:
    shown = project.runpytest_subprocess("--help").stdout.str()
    for name in options.SETTINGS:
        assert options.flag(name) in shown
        assert options.variable(name) in shown
        assert f"{options.key(name)} (string)" in shown
