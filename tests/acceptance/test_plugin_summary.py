"""The pytest plugin as a user sees it: the summary of the lab tests of a run."""

from __future__ import annotations

import re

import pytest

from tests.server import LabServer

TESTS = """
import os, pytest

def test_fine(shared): pass
def test_fails(shared): assert False, "a | b `c` [d](http://e) <f> __g__"
def test_fresh(fresh): pass
@pytest.mark.parametrize("n", [1, 2])
def test_again(fresh, n): pass
@pytest.mark.skip
def test_skipped(fresh): pass
def test_broken(broken): pass
def test_plain(): assert False
"""


def rows(text: str, head: str) -> dict[str, list[str]]:
    """The rows of a table, by their first cell."""
    (table,) = re.findall(rf"^\| {head} \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_summary_has_labs_waits_and_failures(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    online.makepyfile(test_all=TESTS)
    result = online.runpytest_subprocess("--remote-lab-summary=summary.md", "--junitxml=report.xml", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = online.path.joinpath("summary.md").read_text()
    counts = "4 passed, 1 failed, 1 error, 1 skipped"
    assert re.match(rf"## Remote lab\n\n7 lab tests on {lab_server.url}: {counts}\. \d+ s in the queue", text)
    labs = rows(text, "lab")
    assert labs["shared"][:6] == ["shared.yml", "1", "1", "", "", "1"]
    assert labs["fresh"][:6] == ["fresh.yml", "3", "", "", "1", "3"]
    assert labs["broken"][:6] == ["broken.yml", "", "", "1", "", "0"]
    assert re.fullmatch(r"\d+\.\d s", labs["fresh"][6])
    failures = rows(text, "failure")
    assert set(failures) == {"test&#95;all.py::test&#95;fails", "test&#95;all.py::test&#95;broken"}
    lab, message, artifacts = failures["test&#95;all.py::test&#95;fails"]
    assert (lab, message) == (
        "shared",
        "AssertionError: a &#124; b &#96;c&#96; &#91;d&#93;&#40;http://e&#41; &#60;f&#62; &#95;&#95;g&#95;&#95;",
    )
    assert artifacts.startswith("remote-lab-artifacts/test&#95;all.py-test&#95;fails-")
    assert "no&#95;such&#95;attribute" in failures["test&#95;all.py::test&#95;broken"][1]
    assert "remote_lab_use" not in online.path.joinpath("report.xml").read_text()


@pytest.mark.parametrize(
    ("variables", "link"),
    [
        ({"CI_JOB_URL": "https://gitlab.example/x/-/jobs/7"}, "https://gitlab.example/x/-/jobs/7/artifacts/browse/"),
        (
            {"GITHUB_SERVER_URL": "https://github.example", "GITHUB_REPOSITORY": "a/b", "GITHUB_RUN_ID": "7"},
            "https://github.example/a/b/actions/runs/7#artifacts",
        ),
    ],
    ids=["gitlab", "github"],
)
def test_a_summary_links_to_the_artifacts_of_the_ci_system(
    online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], link: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    online.makepyfile("def test_1(fresh): assert False")
    online.runpytest_subprocess("--remote-lab-summary=summary.md").assert_outcomes(failed=1)
    assert f"]({link}" in online.path.joinpath("summary.md").read_text()


def test_only_runs_with_lab_tests_append_to_the_summary_of_github(
    online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = online.path / "step.md"
    file.write_text("# Mine\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    online.makepyfile("def test_1(fresh): pass\ndef test_plain(): pass")
    for _ in range(2):
        online.runpytest_subprocess("-k", "plain").assert_outcomes(passed=1, deselected=1)
        online.runpytest_subprocess().assert_outcomes(passed=2)
    text = file.read_text()
    assert text.startswith("# Mine\n## Remote lab\n\n1 lab tests")
    assert text.count("## Remote lab") == 2


def test_the_last_attempt_of_a_test_counts(online: pytest.Pytester) -> None:
    online.makepyfile(
        """
        import pathlib
        def test_1(shared):
            tried = pathlib.Path("tried")
            assert tried.exists() or tried.touch()
        """
    )
    options = ["-p", "pytest_rerunfailures", "--reruns", "1", "--remote-lab-summary=summary.md"]
    assert online.runpytest_subprocess(*options).ret == pytest.ExitCode.OK
    text = online.path.joinpath("summary.md").read_text()
    assert rows(text, "lab")["shared"][:6] == ["shared.yml", "1", "", "", "", "1"]


def test_a_summary_that_cannot_be_written_is_reported(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(fresh): pass")
    result = online.runpytest_subprocess("--remote-lab-summary=no/such/directory.md")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["remote lab: the summary cannot be written: *"])
