"""The pytest plugin as a user sees it: the workers of pytest-xdist."""

from __future__ import annotations

import pytest

from tests.plugin import ups
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
