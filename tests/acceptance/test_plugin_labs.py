"""The pytest plugin as a user sees it: what a test gets when it asks for a lab."""

from __future__ import annotations

import pytest

from tests.plugin import ups
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


def test_a_shared_lab_is_down_when_its_last_test_is_done(online: pytest.Pytester, lab_server: LabServer) -> None:
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
    result.stdout.fnmatch_lines(["remote lab broken: *", "*no_such_attribute*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*httpx*")
