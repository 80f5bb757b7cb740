"""The pytest plugin as a user sees it: artifacts of failed tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.plugin import ups
from tests.server import LabServer

OUTPUT = "remote-lab-artifacts"


def kept(project: pytest.Pytester, output: str = OUTPUT) -> dict[str, list[Path]]:
    """The directories of artifacts, by the name of the test."""
    tests = sorted(project.path.joinpath(output).glob("*"))
    return {re.sub(r"-[0-9a-f]{7}$", "", test.name): sorted(test.iterdir()) for test in tests}


def files(lab: Path) -> set[str]:
    return {str(path.relative_to(lab)) for path in lab.rglob("*") if path.is_file()}


def test_a_failed_test_leaves_artifacts(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        test_ospf="""
        import pathlib
        def test_adjacency(fresh, remote_lab_client):
            pathlib.Path("session").write_text(remote_lab_client.session_id)
            assert not fresh, "no adjacency"
        def test_fine(shared): pass
        def test_plain(): assert False
        """
    )
    result = online.runpytest_subprocess("--junitxml=report.xml")
    result.assert_outcomes(failed=2, passed=1)
    [(name, [lab])] = kept(online).items()
    assert name == "test_ospf.py-test_adjacency"
    assert files(lab) >= {
        "topology/fresh.yml",
        "netlab.log",
        "configs/r1.cfg",
        "configs/r2.cfg",
        "logs/r1.log",
        "graph.dot",
        "devices.json",
    }
    shown = str(lab.relative_to(online.path))
    result.stdout.fnmatch_lines(["*AssertionError: no adjacency*", "*- remote lab artifacts -*", shown])
    found = ElementTree.parse(online.path / "report.xml").findall(".//property")  # noqa: S314 - our own file
    assert [each.attrib for each in found] == [{"name": "remote_lab_artifacts", "value": shown}]
    session = online.path.joinpath("session").read_text()
    assert session
    assert not [path for path in lab.rglob("*") if path.is_file() and session in path.read_text()]
    assert result.stdout.str().count(OUTPUT) == 1


def test_artifacts_are_collected_before_the_lab_of_the_last_test_is_released(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(
        """
        import pytest
        @pytest.fixture
        def broken_too(shared): raise OSError("no route")
        def test_1(shared): assert False
        def test_2(shared): pass
        def test_3(broken_too): pass
        def test_4(request):
            request.getfixturevalue("shared")
            assert False
        """
    )
    online.runpytest_subprocess().assert_outcomes(failed=2, passed=1, errors=1)
    assert ups(lab_server) == 2  # the lab of the last test was requested at run time
    left = kept(online)
    assert [name.rpartition("-")[2] for name in left] == ["test_1", "test_3", "test_4"]
    assert all("configs/r1.cfg" in files(lab) for [lab] in left.values())


def test_a_lab_that_does_not_start_leaves_netlabs_log(online: pytest.Pytester, lab_server: LabServer) -> None:
    lab_server.fake.control(fail="config")
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass")
    result = online.runpytest_subprocess()
    result.assert_outcomes(errors=2)
    [(name, [lab])] = kept(online).items()
    assert name.endswith("test_1")
    assert files(lab) == {"manifest.json", "netlab.log"}
    assert "netlab initial failed" in (lab / "netlab.log").read_text()
    assert "netlab initial failed" in json.loads((lab / "manifest.json").read_text())["error"]
    assert result.stdout.str().count(str(lab.relative_to(online.path))) == 1


@pytest.mark.parametrize("options", [["-n", "2"], ["-n", "2", "--dist", "each"]], ids=["load", "each"])
def test_workers_leave_artifacts_too(online: pytest.Pytester, options: list[str]) -> None:
    online.makepyfile("def test_1(shared): assert False\ndef test_2(shared): pass\ndef test_3(fresh): assert False")
    result = online.runpytest_subprocess("-p", "xdist", "--junitxml=report.xml", *options)
    copies = 2 if "each" in options else 1
    result.assert_outcomes(failed=2 * copies, passed=copies)
    left = kept(online)
    assert len(left) == 2 * copies
    found = ElementTree.parse(online.path / "report.xml").findall(".//property")  # noqa: S314 - our own file
    shown = {str(lab.relative_to(online.path)) for [lab] in left.values()}
    assert {each.attrib["value"] for each in found} == shown
    for path in shown:
        result.stdout.fnmatch_lines([path])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (["--remote-lab-artifacts=on", "--remote-lab-output=kept"], ["test_1", "test_2"]),
        (["--remote-lab-artifacts=off"], []),
        (["-o", "remote_lab_artifacts=on", "-o", "remote_lab_output=kept"], ["test_1", "test_2"]),
    ],
)
def test_settings_select_the_tests_with_artifacts_and_the_directory(
    online: pytest.Pytester, how: list[str], expected: list[str]
) -> None:
    online.makepyfile("def test_1(fresh): assert False\ndef test_2(fresh): pass")
    online.runpytest_subprocess(*how).assert_outcomes(failed=1, passed=1)
    assert [name.rpartition("-")[2] for name in kept(online, "kept")] == expected
    assert not kept(online)


def test_an_invalid_value_is_a_usage_error(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LAB_ARTIFACTS", "always")
    project.makepyfile("def test_1(fresh): pass")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: REMOTE_LAB_ARTIFACTS must be on, off or retain-on-failure, not 'always'"])


@pytest.mark.parametrize("options", [[], ["-W", "error"]], ids=["warned", "error"])
def test_artifacts_that_cannot_be_fetched_are_a_warning(online: pytest.Pytester, options: list[str]) -> None:
    online.path.joinpath(OUTPUT).touch()
    online.makepyfile("def test_1(fresh): assert False\ndef test_2(fresh): pass")
    result = online.runpytest_subprocess(*options)
    result.assert_outcomes(failed=1, passed=1, warnings=0 if options else 1)
    result.stdout.fnmatch_lines(["the artifacts could not be fetched: *"])


def test_a_test_that_is_repeated_keeps_the_artifacts_of_each_failure(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(
        """
        import pathlib, pytest
        def test_1(fresh):
            tried = pathlib.Path("tried")
            tried.write_text((tried.read_text() if tried.exists() else "") + "x")
            assert tried.read_text() == "xxx"
        @pytest.mark.xfail
        def test_2(fresh): assert False
        """
    )
    result = online.runpytest_subprocess("-p", "pytest_rerunfailures", "--reruns", "2")
    result.assert_outcomes(passed=1, xfailed=1)
    [labs] = kept(online).values()
    assert len(labs) == 2


def test_artifacts_of_an_earlier_run_are_removed_when_their_test_runs_again(
    online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    online.makepyfile(
        """
        import os
        def test_1(fresh): assert "MENDED" in os.environ
        def test_2(fresh): assert False
        """
    )
    online.runpytest_subprocess().assert_outcomes(failed=2)
    before = kept(online)
    monkeypatch.setenv("MENDED", "yes")
    online.runpytest_subprocess("-k", "test_1").assert_outcomes(passed=1)
    assert kept(online) == {name: labs for name, labs in before.items() if name.endswith("test_2")}


def test_no_two_tests_share_a_directory(online: pytest.Pytester) -> None:
    online.makepyfile(
        """
        import pytest
        @pytest.mark.parametrize("value", ["a/b", "a-b", "A-b", "../../x", "x" * 300, "x" * 300 + "y", "ü"])
        def test_1(shared, value): assert False
        """
    )
    online.runpytest_subprocess().assert_outcomes(failed=7)
    names = [path.name for path in online.path.joinpath(OUTPUT).iterdir()]
    assert len({name.casefold() for name in names}) == 7
    assert all(re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII) for name in names)


def test_a_time_limit_for_tests_does_not_include_the_collection_of_artifacts(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    lab_server.fake.control(graph_seconds=4)
    online.makepyfile("def test_1(fresh): assert False\ndef test_2(fresh): pass")
    result = online.runpytest_subprocess("-p", "pytest_timeout", "--timeout=3")
    result.assert_outcomes(failed=1, passed=1)
    [[lab]] = kept(online).values()
    assert "graph.dot" in files(lab)


@pytest.mark.skipif(not hasattr(pytest, "Subtests"), reason="subtests came with pytest 9")
def test_a_shared_lab_is_collected_once_per_failed_test(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        """
        from neops_remote_lab.testing.fixture import remote_lab_fixture

        wide = remote_lab_fixture("fresh.yml", name="wide", scope="module")

        def test_1(wide): pass
        def test_2(wide, subtests):
            for device in wide:
                with subtests.test(device.name):
                    assert not device
        """
    )
    online.runpytest_subprocess().assert_outcomes(failed=3, passed=1)
    [(name, [lab])] = kept(online).items()
    assert name.endswith("test_2")
    assert "configs/r2.cfg" in files(lab)
    assert len(lab_server.fake.invocations("graph")) == 1
