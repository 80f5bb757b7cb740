"""The pytest plugin as a user sees it: the workers of pytest-xdist."""

from __future__ import annotations

import pytest

from tests.plugin import CONFTEST, ups
from tests.server import LabServer


def test_the_workers_of_a_run_share_one_session(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        """
        import pathlib, pytest

        @pytest.fixture(autouse=True)
        def note(remote_lab_client, worker_id):
            pathlib.Path(f"{worker_id}.session").write_text(remote_lab_client.session_id)

        @pytest.mark.parametrize("n", range(4))
        def test_shared(shared, n): pass

        @pytest.mark.parametrize("n", range(3))
        def test_fresh(fresh, n): pass
        """
    )
    online.runpytest_subprocess("-p", "xdist", "-n", "2").assert_outcomes(passed=7)
    notes = [path.read_text() for path in online.path.glob("*.session")]
    assert len(notes) == 2
    assert len(set(notes)) == 1
    assert ups(lab_server) >= 4


def test_a_worker_that_crashes_does_not_keep_its_lab(online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_LAB_ACQUISITION_TIMEOUT", "20")
    online.makepyfile(
        """
        import os
        def test_1(shared): pass
        def test_2(shared): os._exit(3)
        def test_3(shared): pass
        def test_4(fresh): pass
        """
    )
    result = online.runpytest_subprocess("-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=3, failed=1)


# Taking turns

TAKING_TURNS = """
import contextlib, os, pathlib, pytest, time

@contextlib.contextmanager
def alone(lab):
    "Nobody else is in a test of a lab meanwhile."
    pathlib.Path("busy").mkdir()
    try:
        yield
    finally:
        pathlib.Path("busy").rmdir()

@pytest.mark.parametrize("n", range(4))
def test_shared_{part}(shared, n):
    with alone("shared"):
        time.sleep(0.02)

@pytest.mark.parametrize("n", range(2))
def test_fresh_{part}(fresh, n):
    with alone("fresh"):
        time.sleep(0.02)

@pytest.mark.parametrize("n", range(4))
def test_plain_{part}(n): pass
"""


@pytest.mark.parametrize(
    ("mode", "starts"),
    [("load", 5), ("loadscope", 5), ("loadfile", 5), ("loadgroup", 5), ("worksteal", 5), ("each", 9), ("no", 5)],
)
def test_no_two_lab_tests_run_at_once_and_a_shared_lab_is_started_once(
    online: pytest.Pytester, lab_server: LabServer, mode: str, starts: int
) -> None:
    for part in ("one", "two"):
        online.path.joinpath(f"test_{part}.py").write_text(TAKING_TURNS.format(part=part), encoding="utf-8")
    workers = ["--tx", "2*popen"] if mode in {"each", "no"} else ["-n", "2"]
    result = online.runpytest_subprocess("-p", "xdist", "--dist", mode, *workers)
    result.assert_outcomes(passed=40 if mode == "each" else 20)
    assert ups(lab_server) == starts


def test_the_wait_for_another_worker_of_the_run_has_no_limit(
    online: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_ACQUISITION_TIMEOUT", "6")
    online.path.joinpath("test_one.py").write_text("import time\ndef test_1(shared): time.sleep(8)\n")
    online.path.joinpath("test_two.py").write_text("def test_2(fresh): pass\n")
    result = online.runpytest_subprocess("-p", "xdist", "-n", "2", "--dist", "loadfile")
    result.assert_outcomes(passed=2)


def test_a_worker_that_dies_while_it_has_the_lab_does_not_stop_the_others(online: pytest.Pytester) -> None:
    online.path.joinpath("test_one.py").write_text(
        """
import os, pathlib
def test_1(shared):
    if not pathlib.Path("died").exists():
        pathlib.Path("died").touch()
        os._exit(3)
"""
    )
    online.path.joinpath("test_two.py").write_text("def test_2(fresh): pass\ndef test_3(shared): pass\n")
    result = online.runpytest_subprocess("-p", "xdist", "-n", "2", "--dist", "loadfile")
    result.assert_outcomes(passed=3, failed=1)


def test_reports_do_not_contain_the_session_id(online: pytest.Pytester) -> None:
    online.makeconftest(
        CONFTEST
        + """
def pytest_runtest_logreport(report):
    with open("reports", "a") as file:
        print(report.__dict__, file=file)
"""
    )
    online.makepyfile(
        """
        import pathlib
        def test_1(shared, remote_lab_client): pathlib.Path("session").write_text(remote_lab_client.session_id)
        """
    )
    online.runpytest_subprocess("-p", "xdist", "-n", "1").assert_outcomes(passed=1)
    session = online.path.joinpath("session").read_text()
    controller = [
        line for line in online.path.joinpath("reports").read_text().splitlines() if "WorkerController" in line
    ]
    assert controller
    assert not [line for line in controller if session in line]
