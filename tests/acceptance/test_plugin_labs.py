"""The pytest plugin as a user sees it: the labs that tests get."""

from __future__ import annotations

import pytest

from tests.fakes import wait_until
from tests.plugin import finish, start, ups
from tests.server import LabServer


def test_a_shared_lab_is_started_once_and_a_fresh_one_for_every_test(
    online: pytest.Pytester, lab_server: LabServer
) -> None:
    online.makepyfile(
        """
        def test_1(shared): assert [device.name for device in shared] == ["r1"]
        def test_2(router): assert router.raw
        def test_3(fresh): assert [device.name for device in fresh] == ["r1", "r2"]
        def test_4(fresh): pass
        def test_5(shared): pass
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=5)
    assert ups(lab_server) == 3


def test_a_shared_lab_is_released_after_its_last_test(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(
        """
        import os, httpx

        def references(client):
            headers = {"X-Session-ID": client.session_id}
            return httpx.get(os.environ["REMOTE_LAB_URL"] + "/lab", headers=headers)

        def test_1(shared, remote_lab_client): assert references(remote_lab_client).json()["ref_count"] == 1
        def test_2(shared, remote_lab_client): assert references(remote_lab_client).json()["ref_count"] == 1
        def test_plain(remote_lab_client):
            answer = references(remote_lab_client)
            assert answer.status_code == 404 or not answer.json()["ref_count"]
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_second_lab_at_run_time_fails_the_test(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(shared, request): request.getfixturevalue('fresh')\ndef test_2(shared): pass")
    result = online.runpytest_subprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["remote lab fresh: the test uses a lab already*"])


def test_a_topology_that_netlab_rejects_is_one_clear_message(online: pytest.Pytester) -> None:
    online.makepyfile("def test_broken(broken): pass\ndef test_good(shared): pass")
    result = online.runpytest_subprocess()
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["remote lab broken: *no_such_attribute*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*httpx*")


# Failures that repeat


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_a_shared_lab_that_does_not_start_is_not_started_again_for_its_other_tests(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    lab_server.fake.control(fail="config")
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass\ndef test_3(shared): pass")
    result = online.runpytest_subprocess(*options)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(["remote lab shared: not started again: *"])
    assert ups(lab_server) == 1


def test_a_test_that_is_repeated_starts_its_lab_again(online: pytest.Pytester, lab_server: LabServer) -> None:
    lab_server.fake.control(fail="config", fail_times=1)
    online.makepyfile("def test_1(shared): pass\ndef test_2(shared): pass")
    online.runpytest_subprocess("-p", "pytest_rerunfailures", "--reruns", "1").assert_outcomes(passed=2)
    assert ups(lab_server) == 2


def test_an_unreachable_lab_host_fails_the_other_lab_tests_at_once(
    project: pytest.Pytester, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_URL", lab_server.url)
    monkeypatch.setenv("REMOTE_LAB_UNREACHABLE_TIMEOUT", "1")
    project.makepyfile(
        """
        import pathlib, threading
        def test_1(fresh):
            pathlib.Path("blocked").touch()
            while not pathlib.Path("gone").exists(): threading.Event().wait(0.05)
        def test_2(fresh): pass
        def test_3(fresh): pass
        def test_plain(): pass
        """
    )
    process = start(project)
    wait_until(project.path.joinpath("blocked").exists, 30)
    lab_server.kill()
    project.path.joinpath("gone").touch()
    output = finish(process)
    assert output.count("not tried again: no answer from") >= 2
    assert "2 passed, 3 errors" in output


# Fixtures that are set up twice


@pytest.mark.parametrize(
    ("options", "mark"),
    [
        (["-p", "flaky.flaky_pytest_plugin"], "flaky.flaky(max_runs=3)"),
        (["-p", "pytest_rerunfailures"], "pytest.mark.flaky(reruns=2)"),
    ],
    ids=["flaky", "rerunfailures"],
)
@pytest.mark.parametrize("lab", ["shared", "fresh"])
def test_the_last_lab_test_may_be_repeated(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], mark: str, lab: str
) -> None:
    online.makepyfile(
        f"""
        import pathlib, httpx, flaky, pytest

        def session_of_the_run(client):
            path = pathlib.Path("session")
            known = path.exists() and path.read_text()
            path.write_text(client.session_id)
            return known in (False, client.session_id)

        @{mark}
        def test_1({lab}, remote_lab_client):
            assert session_of_the_run(remote_lab_client), "another session"
            path = pathlib.Path("tried")
            path.write_text((path.read_text() if path.exists() else "") + "x")
            assert path.read_text() == "xxx"
        """
    )
    result = online.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    assert online.path.joinpath("tried").read_text() == "xxx"
