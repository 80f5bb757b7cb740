"""The pytest plugin as a user sees it: tests that name their lab host with the marker `remote_lab_url`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import wait_until
from tests.plugin import BLOCK, collected, finish, queue, start, ups
from tests.server import LabServer, running_server

ALONE_AND_XDIST = pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])


@pytest.fixture
def other(online: pytest.Pytester, tmp_path: Path) -> Iterator[LabServer]:
    """A second server. At the end of the test it has no session and no lab either."""
    (tmp_path / "other").mkdir()
    with running_server(tmp_path / "other") as server:
        yield server
        wait_until(lambda: queue(server) == [] and not server.fake.leftovers(), 20, "something is left")


def suite(other: LabServer) -> str:
    return f"""
        import pytest, time

        OTHER = pytest.mark.remote_lab_url("{other.url}")

        def test_here_1(shared, remote_lab_client): assert remote_lab_client.base_url != "{other.url}"
        @OTHER
        def test_there_1(shared, remote_lab_client): assert remote_lab_client.base_url == "{other.url}"
        def test_here_2(shared): time.sleep(0.05)
        def test_plain(): pass

        @OTHER
        class TestThere:
            def test_there_2(self, shared): assert [device.name for device in shared] == ["r1"]
            def test_there_3(self, fresh): assert [device.name for device in fresh] == ["r1", "r2"]
            def test_plain(self): pass

        @pytest.mark.parametrize("n", range(3))
        def test_here_3(fresh, n): assert [device.name for device in fresh] == ["r1", "r2"]
        """


def test_tests_of_one_lab_host_stay_together(online: pytest.Pytester, other: LabServer) -> None:
    online.makepyfile(suite(other))
    assert collected(online, "--strict-markers") == [
        *("test_here_1", "test_here_2", "test_here_3[0]", "test_here_3[1]", "test_here_3[2]"),
        *("test_there_1", "TestThere::test_there_2", "TestThere::test_there_3"),
        *("test_plain", "TestThere::test_plain"),
    ]


@pytest.mark.parametrize(
    "options",
    [[], *(["-p", "xdist", "-n", "2", "--dist", mode] for mode in ("load", "loadscope", "each"))],
    ids=["alone", "load", "loadscope", "each"],
)
def test_each_test_uses_the_lab_of_its_lab_host(
    online: pytest.Pytester, lab_server: LabServer, other: LabServer, options: list[str]
) -> None:
    online.makepyfile(suite(other))
    online.runpytest_subprocess(*options).assert_outcomes(passed=20 if "each" in options else 10)
    copies = 2 if "each" in options else 1
    assert ups(lab_server) == 3 * copies + 1
    # one more if a worker releases a shared lab before another worker needs it
    assert copies + 1 <= ups(other) <= copies + 2


def test_no_address_is_needed_if_every_test_names_its_lab_host(
    online: pytest.Pytester, other: LabServer, lab_server: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REMOTE_LAB_URL")
    online.makepyfile(f"""
        import pytest
        pytestmark = pytest.mark.remote_lab_url("{other.url}")
        def test_1(shared): pass
        def test_2(broken): pass
        @pytest.mark.remote_lab_url("{lab_server.url}")
        def test_3(fresh): pass
        """)
    online.runpytest_subprocess().assert_outcomes(passed=2, errors=1)
    assert (ups(lab_server), ups(other)) == (1, 2)  # one of the tests is refused


def test_a_session_ends_with_the_last_test_of_its_lab_host(
    online: pytest.Pytester, lab_server: LabServer, other: LabServer
) -> None:
    online.makeconftest(
        """
        import pytest
        from neops_remote_lab.testing.fixture import remote_lab_fixture

        shared = remote_lab_fixture("shared.yml", reuse_lab=True, scope="session")

        @pytest.fixture(scope="session")
        def connection(shared, remote_lab_client):
            yield remote_lab_client
            assert not remote_lab_client.closed
        """
    )
    online.makepyfile(
        f"""
        import httpx, pytest

        def sessions(url): return httpx.get(f"{{url}}/queue").json()["sessions"]

        def test_1(connection): assert connection.base_url == "{lab_server.url}"
        @pytest.mark.remote_lab_url("{other.url}")
        def test_2(connection):
            assert connection.base_url == "{other.url}"
            assert not sessions("{lab_server.url}")
        def test_3(): assert not sessions("{other.url}")
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=3)


def test_a_lab_requested_at_run_time_is_started_on_the_lab_host_of_the_test(
    online: pytest.Pytester, lab_server: LabServer, other: LabServer
) -> None:
    online.makepyfile(
        f"""
        import pytest

        def test_1(request): request.getfixturevalue("shared")
        @pytest.mark.remote_lab_url("{other.url}")
        def test_2(request):
            request.getfixturevalue("shared")
            assert request.getfixturevalue("remote_lab_client").base_url == "{other.url}"
        def test_3(request): request.getfixturevalue("shared")
        """
    )
    online.runpytest_subprocess().assert_outcomes(passed=3)
    assert (ups(lab_server), ups(other)) == (2, 1)


def test_an_unreachable_lab_host_does_not_affect_tests_of_another_one(
    online: pytest.Pytester, other: LabServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTE_LAB_UNREACHABLE_TIMEOUT", "1")
    online.makepyfile(
        """
        import pytest
        @pytest.mark.remote_lab_url("http://127.0.0.1:9")
        def test_1(shared): pass
        def test_2(shared): pass
        """
    )
    for options in ([], ["-p", "xdist", "-n", "2"]):
        result = online.runpytest_subprocess(*options)
        result.assert_outcomes(passed=1, errors=1)
        result.stdout.fnmatch_lines(["*no answer from http://127.0.0.1:9*"])


@ALONE_AND_XDIST
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_a_run_ends_all_sessions(
    online: pytest.Pytester, lab_server: LabServer, other: LabServer, options: list[str], number: signal.Signals
) -> None:
    online.makepyfile(
        f"""
import pytest
def test_1(shared): pass
@pytest.mark.remote_lab_url("{other.url}")
def test_2(shared):{BLOCK}
def test_3(request): request.getfixturevalue("shared")
"""
    )
    process = start(online, *options)
    wait_until(online.path.joinpath("blocked").exists, 30)
    process.send_signal(number)
    finish(process)


def test_a_worker_that_crashes_does_not_keep_labs_of_any_lab_host(online: pytest.Pytester, other: LabServer) -> None:
    online.makepyfile(
        f"""
        import os, pytest
        def test_1(shared): pass
        @pytest.mark.remote_lab_url("{other.url}")
        def test_2(shared): os._exit(3)
        @pytest.mark.remote_lab_url("{other.url}")
        def test_3(fresh): pass
        """
    )
    online.runpytest_subprocess("-p", "xdist", "-n", "1").assert_outcomes(passed=2, failed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "test_wrong: it takes one address"),
        ("'http://a', 'http://b'", "test_wrong: it takes one address"),
        ("8000", "test_wrong: it takes one address"),
        ("''", "test_wrong: it takes one address"),
        ("url='http://lab:8000'", "test_wrong: it takes one address"),
        ("'local'", "test_wrong: 'local' is for a whole run"),
        ("'lab:8000'", "the marker remote_lab_url lacks the scheme (http://)"),
    ],
)
@ALONE_AND_XDIST
def test_a_marker_that_names_no_lab_host_is_a_usage_error(
    project: pytest.Pytester, options: list[str], arguments: str, message: str
) -> None:
    project.makepyfile(
        f"""
        import pytest
        @pytest.mark.remote_lab_url({arguments})
        def test_wrong(shared): pass
        def test_plain(): pass
        """
    )
    result = project.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stdout.str() + result.stderr.str()
