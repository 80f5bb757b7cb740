"""The pytest plugin as a user sees it: the order of labs beside options and plugins that choose or sort tests."""

from __future__ import annotations

import pytest

from tests.plugin import PLUGIN, collected, ups
from tests.server import LabServer

MIXED = """
    import pathlib

    def may_fail(name):
        assert not pathlib.Path(f"fail_{name}").exists()

    def test_plain_1(): may_fail("plain_1")
    def test_shared_1(shared): may_fail("shared_1")
    def test_fresh_1(fresh): may_fail("fresh_1")
    def test_shared_2(shared): may_fail("shared_2")
    def test_plain_2(): may_fail("plain_2")
"""
ALL = ["test_shared_1", "test_shared_2", "test_fresh_1", "test_plain_1", "test_plain_2"]


@pytest.fixture
def caching(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose runs record which tests have failed."""
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {PLUGIN}")
    # these runs fail, because there is no server
    project.makeconftest(
        """
        import pytest
        from neops_remote_lab.testing.fixture import remote_lab_fixture

        shared = remote_lab_fixture("shared.yml", reuse_lab=True)
        fresh = remote_lab_fixture("fresh.yml")

        @pytest.fixture(scope="session")
        def remote_lab_client():
            class Client:
                def acquire(self, topology, reuse): return []
                def release(self): pass
            return Client()
        """
    )
    project.makepyfile(MIXED)
    return project


def ran(project: pytest.Pytester, *options: str) -> list[str]:
    """The tests of a run, in their order."""
    result = project.runpytest_subprocess("-v", *options)
    return [line.split("::", 1)[1].split()[0] for line in result.outlines if "::" in line and "%]" in line]


def test_stepwise_skips_only_tests_that_have_passed(caching: pytest.Pytester) -> None:
    for name in ("shared_2", "plain_1"):
        caching.path.joinpath(f"fail_{name}").touch()
    assert ran(caching, "--sw") == ALL[:2]
    caching.path.joinpath("fail_shared_2").unlink()
    assert ran(caching, "--sw") == ALL[1:4]
    assert ran(caching, "--sw") == ["test_plain_1"]
    caching.path.joinpath("fail_plain_1").unlink()
    assert ran(caching, "--sw") == ALL[3:]
    assert ran(caching, "--sw") == ALL


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--lf"], ["test_shared_2", "test_fresh_1", "test_plain_2"]),
        (["--ff"], ["test_shared_2", "test_shared_1", "test_fresh_1", "test_plain_2", "test_plain_1"]),
        (["--nf"], ALL),
        (["--deselect", "test_labs.py::test_shared_1"], [name for name in ALL if name != "test_shared_1"]),
        (["-k", "1"], [name for name in ALL if name.endswith("1")]),
        (["-m", "not remote_lab"], ["test_plain_1", "test_plain_2"]),
        (["-p", "no:cacheprovider"], ALL),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else "",
)
def test_tests_selected_by_options_are_ordered_and_none_is_lost(
    caching: pytest.Pytester, options: list[str], expected: list[str]
) -> None:
    caching.makepyfile(test_labs=MIXED)
    for path in caching.path.glob("test_tests*.py"):
        path.unlink()
    for name in ("shared_2", "fresh_1", "plain_2"):
        caching.path.joinpath(f"fail_{name}").touch()
    assert ran(caching) == ALL
    assert ran(caching, *options) == expected


def test_xdist_workers_select_tests_by_earlier_failures_too(caching: pytest.Pytester) -> None:
    workers = ("-p", "xdist", "-n", "1")
    for name in ("shared_2", "fresh_1", "plain_2"):
        caching.path.joinpath(f"fail_{name}").touch()
    assert ran(caching, *workers) == ALL
    assert ran(caching, *workers, "--lf") == ["test_shared_2", "test_fresh_1", "test_plain_2"]
    assert ran(caching, *workers, "--sw")[:2] == ALL[:2]
    caching.path.joinpath("fail_shared_2").unlink()
    assert ran(caching, *workers, "--sw")[:2] == ALL[1:3]


# Labs that are requested at run time


def test_labs_requested_by_a_parameter_are_started_once_each(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makeconftest(
        """
        from neops_remote_lab.testing.fixture import remote_lab_fixture
        one = remote_lab_fixture("shared.yml", name="one", reuse_lab=True)
        two = remote_lab_fixture("fresh.yml", name="two", reuse_lab=True)
        """
    )
    online.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(3))
        @pytest.mark.parametrize("lab", ["one", "two"])
        def test_lab(request, n, lab): assert request.getfixturevalue(lab)
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=6)
    assert ups(lab_server) == 2
    assert collected(online, "-m", "remote_lab") == []


def test_a_lab_requested_at_run_time_is_kept_until_another_one_is_needed(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(
        """
        def test_1(request): request.getfixturevalue("shared")
        def test_plain(): pass
        def test_2(request): request.getfixturevalue("shared")
        def test_3(request): request.getfixturevalue("fresh")
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=4)
    assert ups(lab_server) == 2


# Runs without tests


@pytest.mark.parametrize("option", ["--setup-plan", "--setup-only", "--collect-only", "--fixtures"])
def test_a_run_without_tests_does_not_contact_the_lab_host(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("REMOTE_LAB_URL", "http://127.0.0.1:9")
    project.makepyfile("def test_1(shared): pass\ndef test_2(router): pass\ndef test_3(remote_lab_client): pass")
    result = project.runpytest_subprocess(option)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.no_fnmatch_line("*joining the queue*")
