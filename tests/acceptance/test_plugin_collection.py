"""The pytest plugin as a user sees it: which tests use which lab, their order, and runs without a lab host."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.plugin import collected


def test_tests_of_one_lab_run_one_after_the_other_in_the_order_of_the_fixtures(project: pytest.Pytester) -> None:
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


def test_lab_tests_have_a_registered_marker(project: pytest.Pytester) -> None:
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


def test_a_missing_topology_fails_at_the_definition_of_the_fixture(project: pytest.Pytester) -> None:
    project.makepyfile(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\nx = remote_lab_fixture('x.yml')"
    )
    result = project.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*FileNotFoundError: no topology file x.yml*"])


def test_a_topology_beside_the_conftest_file_is_found_from_any_directory(project: pytest.Pytester) -> None:
    folder = project.mkdir("labs")
    folder.joinpath("ring.yml").write_text("nodes: [r1]\n")
    folder.joinpath("conftest.py").write_text(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\n"
        "ring = remote_lab_fixture('ring.yml')\nbeam = remote_lab_fixture('shared.yml', name='other')\n"
    )
    folder.joinpath("test_ring.py").write_text("def test_ring(ring): pass\ndef test_other(other): pass\n")
    assert collected(project, "-m", "remote_lab") == ["test_ring", "test_other"]


@pytest.mark.usefixtures("interpreters")
def test_a_run_without_labs_imports_only_the_standard_library(
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


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("REMOTE_LAB_REQUEST_TIMEOUT", "soon", "must be a number of seconds above 0, not 'soon'"),
        ("REMOTE_LAB_SESSION_TIMEOUT", "soon", "must be a number of seconds above 0, not 'soon'"),
        ("REMOTE_LAB_ACQUISITION_TIMEOUT", "soon", "must be a number of seconds above 0, not 'soon'"),
        ("REMOTE_LAB_UNREACHABLE_TIMEOUT", "-1", "must be a number of seconds above 0, not '-1'"),
        ("REMOTE_LAB_URL", "https://ann:s3cret@lab:8000\n", "begins or ends with a space or a line break"),
        ("REMOTE_LAB_URL", "ann:s3cret@lab", "lacks the scheme"),
        ("REMOTE_LAB_TOKEN", "s3cret token", "has a space"),
        ("HTTP_PROXY", "ftp://ann:s3cret@proxy", "has another scheme"),
        ("ALL_PROXY", "socks5://proxy:1080", "names a SOCKS proxy"),
    ],
)
def test_an_invalid_variable_is_one_usage_error(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("REMOTE_LAB_URL", "http://lab.invalid:9")
    monkeypatch.setenv(variable, value)
    project.makepyfile("def test_lab(shared): pass\ndef test_other(shared): pass\ndef test_third(fresh): pass")
    result = project.runpytest_subprocess("--junit-xml=junit.xml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert len([line for line in text.splitlines() if f"{variable} {message}" in line]) == 1
    assert "s3cret" not in text + project.path.joinpath("junit.xml").read_text()
    assert "Traceback" not in text


def test_an_invalid_variable_is_one_usage_error_with_workers(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_URL", "ann:s3cret@lab")
    project.makepyfile("def test_lab(shared): pass\ndef test_other(shared): pass\ndef test_third(fresh): pass")
    result = project.runpytest_subprocess("-p", "xdist", "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert "REMOTE_LAB_URL lacks the scheme" in text
    assert "s3cret" not in text


# The directory of a topology


def two_topologies(project: pytest.Pytester, *, same: bool) -> None:
    """A conftest file with a topology beside it, and another one of that name in the current directory."""
    directory = project.mkdir("labs")
    text = project.path.joinpath("shared.yml").read_text()
    directory.joinpath("shared.yml").write_text(text if same else "nodes: [mine]\n")
    directory.joinpath("conftest.py").write_text(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\n"
        "from neops_remote_lab.testing.labs import labs_of\n"
        "mine = remote_lab_fixture('shared.yml', name='mine')\n"
        "def pytest_collection_finish(session):\n"
        "    print('TOPOLOGY', *(spec.path for item in session.items for spec in labs_of(item)))\n"
    )
    directory.joinpath("test_mine.py").write_text("def test_mine(mine): pass\n")


@pytest.mark.parametrize("same", [True, False])
def test_the_topology_beside_the_calling_file_has_priority(project: pytest.Pytester, same: bool) -> None:
    two_topologies(project, same=same)
    result = project.runpytest_subprocess("--collect-only")
    mine, other = project.path / "labs" / "shared.yml", project.path / "shared.yml"
    result.stdout.fnmatch_lines([f"TOPOLOGY {mine}"])
    warning = f"*PytestWarning: there are two topology files shared.yml: {mine} is used, and not {other}*"
    if same:
        result.stdout.no_fnmatch_line("*two topology files*")
    else:
        result.stdout.fnmatch_lines([warning])


def test_with_warnings_as_errors_the_message_names_both_topologies(project: pytest.Pytester) -> None:
    two_topologies(project, same=False)
    result = project.runpytest_subprocess("-W", "error")
    assert result.ret != pytest.ExitCode.OK
    assert "give an absolute path to choose" in result.stdout.str() + result.stderr.str()


# Secrets


@pytest.mark.parametrize("options", [[], ["-l"], ["--tb=long", "-l"], ["--full-trace", "-l"], ["-vv", "--tb=native"]])
@pytest.mark.parametrize("setting", ["", "not an address", "http://127.0.0.1:9"])
def test_a_failure_shows_nothing_of_the_environment(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], setting: str
) -> None:
    monkeypatch.setenv("CI_TOKEN_SECRET", "do-not-show-me")
    monkeypatch.setenv("REMOTE_LAB_UNREACHABLE_TIMEOUT", "0.1")
    if setting:
        monkeypatch.setenv("REMOTE_LAB_URL", setting)
    project.makepyfile("def test_1(shared): pass")
    result = project.runpytest_subprocess("--junitxml=report.xml", *options)
    shown = result.stdout.str() + result.stderr.str() + project.path.joinpath("report.xml").read_text()
    assert "do-not-show-me" not in shown
    assert setting or "REMOTE_LAB_URL is not set" in shown


def test_without_a_lab_host_one_message_is_shown(project: pytest.Pytester) -> None:
    project.makepyfile("def test_1(shared): pass")
    output = project.runpytest_subprocess("-l").stdout.str()
    assert "E   RuntimeError: REMOTE_LAB_URL is not set" in output
    assert "def remote_lab_client" not in output
