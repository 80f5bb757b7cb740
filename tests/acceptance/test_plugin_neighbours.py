"""The pytest plugin beside other plugins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

from tests.plugin import other_session, queue, ups
from tests.server import LabServer

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

SUITE = """
    import pytest

    def test_plain(): pass
    def test_shared_1(shared): assert shared
    def test_fresh(fresh): assert fresh
    def test_shared_2(router): assert router
"""
BOTH = pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "1"]], ids=["alone", "xdist"])
ASYNCIO = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")


@dataclass(frozen=True)
class Neighbour:
    """A plugin, and a suite that uses it.

    Attributes:
        options: how it is loaded and used.
        suite: a test module.
        passed: how many tests pass.
        starts: how often a lab is started.
        features: name and text of the `.feature` files beside the module.
    """

    options: tuple[str, ...]
    suite: str
    passed: int
    starts: int
    features: dict[str, str] = field(default_factory=dict)


NEIGHBOURS = {
    "randomly": Neighbour(("-p", "pytest_randomly"), SUITE, 4, 2),
    "order": Neighbour(
        ("-p", "pytest_order.plugin"),
        """
        import pytest
        order = []

        @pytest.mark.order(2)
        def test_1(shared): order.append(1)
        @pytest.mark.order("last")
        def test_2(fresh): pass
        @pytest.mark.order(1)
        def test_3(shared): order.append(3)
        @pytest.mark.order("first")
        def test_4(): pass
        def test_5(shared): assert order == [3, 1]
        """,
        5,
        2,
    ),
    "rerunfailures": Neighbour(
        ("-p", "pytest_rerunfailures", "--reruns", "2"),
        """
        tries = []
        def test_1(shared):
            tries.append(1)
            assert len(tries) == 2
        def test_2(shared): pass
        def test_3(): pass
        """,
        3,
        1,
    ),
    "flaky": Neighbour(
        ("-p", "flaky.flaky_pytest_plugin"),
        """
        from flaky import flaky
        tries = []
        @flaky(max_runs=3)
        def test_1(shared):
            tries.append(1)
            assert len(tries) == 2
        def test_2(shared): pass
        def test_3(): pass
        """,
        3,
        1,
    ),
    "timeout": Neighbour(("-p", "pytest_timeout", "--timeout", "60"), SUITE, 4, 2),
    "asyncio": Neighbour(
        ("-p", "pytest_asyncio.plugin", *ASYNCIO),
        """
        import asyncio, pytest

        @pytest.fixture
        async def router(shared):
            await asyncio.sleep(0)
            return shared[0]

        async def test_1(shared): await asyncio.sleep(0)
        async def test_2(router): assert router.name == "r1"
        def test_3(fresh): pass
        """,
        3,
        2,
    ),
    "lazy-fixtures": Neighbour(
        ("-p", "pytest_lazy_fixtures.plugin", "-m", "remote_lab"),
        """
        import pytest
        from pytest_lazy_fixtures import lf

        @pytest.mark.parametrize("n", range(2))
        @pytest.mark.parametrize("devices", [lf("shared"), [lf("fresh")]])
        def test_1(devices, n): assert devices
        def test_plain(): pass
        """,
        4,
        3,
    ),
    "bdd": Neighbour(
        ("-p", "pytest_bdd.plugin"),
        """
        from pytest_bdd import given, scenario, scenarios, then

        @scenario("ospf.feature", "Neighbours are found")
        def test_neighbours(shared): pass
        @scenario("ospf.feature", "Routes are learned")
        def test_routes(shared): pass

        scenarios("fresh.feature")

        @given("the lab", target_fixture="devices")
        def the_lab(shared): return shared
        @given("a fresh lab", target_fixture="devices")
        def fresh_lab(fresh): return fresh
        @then("there are routers")
        def there_are_routers(devices): assert devices

        def test_shared(router): assert router
        def test_plain(): pass
        """,
        5,
        2,
        {
            "ospf": """
                Feature: OSPF
                    Scenario: Neighbours are found
                        Given the lab
                        Then there are routers
                    Scenario: Routes are learned
                        Given the lab
                        Then there are routers
                """,
            "fresh": """
                Feature: A lab that only a step asks for
                    Scenario: It is there
                        Given a fresh lab
                        Then there are routers
                """,
        },
    ),
}
PLUGINS = [words[1] for words in (neighbour.options for neighbour in NEIGHBOURS.values())]
"""The names of the plugins. The options of each one begin with `-p` and its name."""


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_works_beside_another_plugin(online: pytest.Pytester, lab_server: LabServer, name: str) -> None:
    neighbour = NEIGHBOURS[name]
    online.makepyfile(neighbour.suite)
    if neighbour.features:
        online.makefile(".feature", **neighbour.features)
    result = online.runpytest_subprocess(*neighbour.options)
    assert result.parseoutcomes().get("passed") == neighbour.passed, result.stdout.str()
    assert result.ret == pytest.ExitCode.OK
    assert ups(lab_server) == neighbour.starts


def test_works_beside_all_of_them_at_once(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(SUITE)
    options = [word for name in PLUGINS for word in ("-p", name)]
    result = online.runpytest_subprocess(*options, "--reruns", "1", "--timeout", "60", *ASYNCIO)
    result.assert_outcomes(passed=4)
    assert ups(lab_server) == 2


def test_works_beside_each_of_them_in_xdist_workers(online: pytest.Pytester) -> None:
    # The suite of pytest-order would fail in a random order, and flaky disables the reruns of pytest-rerunfailures.
    names = NEIGHBOURS.keys() - {"randomly", "flaky"}
    for name in names:
        online.makepyfile(**{f"test_{name.replace('-', '_')}": NEIGHBOURS[name].suite})
        if NEIGHBOURS[name].features:
            online.makefile(".feature", **NEIGHBOURS[name].features)
    plugins = [word for name in names for word in NEIGHBOURS[name].options[:2]]
    settings = ["--reruns", "2", "--timeout", "60", *ASYNCIO]
    result = online.runpytest_subprocess(*plugins, *settings, "-p", "xdist", "-n", "2", "--dist", "loadfile")
    deselected = 1  # a test that the options of pytest-lazy-fixtures deselect when it runs alone
    passed = sum(NEIGHBOURS[name].passed for name in names) + deselected
    assert result.parseoutcomes().get("passed") == passed, result.stdout.str()
    assert result.ret == pytest.ExitCode.OK


# Tests that other plugins repeat or end


@BOTH
def test_a_rerun_gets_a_fresh_lab_and_a_failed_lab_is_started_again(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    lab_server.fake.control(fail="config", fail_times=1)
    online.makepyfile(
        """
        tries = []
        def test_fresh(fresh):
            tries.append(1)
            assert len(tries) == 2
        def test_shared(shared): pass
        """
    )
    result = online.runpytest_subprocess("-p", "pytest_rerunfailures", "--reruns", "2", *options)
    result.assert_outcomes(passed=2)
    assert ups(lab_server) == 4


@BOTH
def test_a_test_that_exceeds_its_timeout_releases_its_lab(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    online.makepyfile(
        """
        import pytest, threading

        @pytest.mark.timeout(1, func_only=True)
        def test_slow_shared(shared): threading.Event().wait(60)
        @pytest.mark.timeout(1, func_only=True)
        def test_slow_fresh(fresh): threading.Event().wait(60)
        def test_shared(shared): assert shared
        def test_fresh(fresh): assert fresh
        """
    )
    result = online.runpytest_subprocess("-p", "pytest_timeout", *options)
    result.assert_outcomes(failed=2, passed=2)
    assert ups(lab_server) == 3


@BOTH
@pytest.mark.parametrize("create_seconds", [60, 0], ids=["during the check of the topologies", "after it"])
def test_a_timeout_in_the_queue_leaves_the_queue(
    online: pytest.Pytester, lab_server: LabServer, options: list[str], create_seconds: float
) -> None:
    lab_server.fake.control(create_seconds=create_seconds)
    online.makepyfile(
        """
        import pytest

        @pytest.mark.timeout(5)
        def test_impatient(shared): pass
        def test_patient(shared): pass
        def test_plain(): pass
        """
    )
    with other_session(lab_server):
        result = online.runpytest_subprocess("-p", "pytest_timeout", *options)
        assert [session["client"] for session in queue(lab_server)] == ["ann@office"]
    result.assert_outcomes(passed=1, errors=2)
    reason = "remote lab: the wait for the lab host was interrupted: Timeout (>5.0s) from pytest-timeout."
    assert result.outlines.count(reason) == 2


# The debugger


@pytest.mark.parametrize("lab", ["shared", "fresh"])
def test_the_debugger_can_use_the_lab(online: pytest.Pytester, lab_server: LabServer, lab: str) -> None:
    online.makepyfile(
        f"""
        import pytest
        @pytest.fixture
        def run({lab}, remote_lab_client): return remote_lab_client.exec
        def test_1(run): assert run("r1", "echo good").stdout == b"bad"
        def test_2({lab}): assert {lab}
        """
    )
    commands = b"print(run('r1', 'echo through the debugger').stdout)\ncontinue\n"
    output = debug(online, commands)
    assert r"b'through the debugger\n'" in output
    assert "1 failed, 1 passed" in output
    assert ups(lab_server) == (1 if lab == "shared" else 2)


def test_quitting_the_debugger_ends_the_session(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(shared): assert False\ndef test_2(shared): pass")
    assert "1 failed" in debug(online, b"quit\n")


def test_the_debugger_shows_why_a_lab_failed(online: pytest.Pytester) -> None:
    online.makepyfile("def test_1(broken): pass\ndef test_2(shared): pass")
    output = debug(online, b"continue\n")
    assert "no_such_attribute" in output.partition("(Pdb)")[0]
    assert "1 passed, 1 error" in output


def debug(project: pytest.Pytester, commands: bytes) -> str:
    """The output of a run with `--pdb`, whose debugger gets these commands."""
    command = [sys.executable, "-m", "pytest", "--pdb"]
    process = project.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output: bytes = process.communicate(commands, timeout=60)[0]
    return output.decode()


@pytest.fixture(scope="session")
def oldest_pytest() -> tuple[str, Path]:
    """The oldest supported version of pytest, and a directory with it, which is cached across test runs."""
    dependencies = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    [minimum] = [text.removeprefix("pytest>=") for text in dependencies if text.startswith("pytest>=")]
    directory = user_cache_path("neops-remote-lab-tests") / f"pytest-{minimum}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not (directory / "complete").exists():
            shutil.rmtree(directory, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=10"]
            command = [*pip, "install", "--no-deps", f"--target={directory}", f"pytest=={minimum}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(directory, ignore_errors=True)
                pytest.skip(f"pytest {minimum} cannot be installed: {done.stderr.strip()[-300:]}")
            (directory / "complete").touch()
    return minimum, directory


@pytest.mark.usefixtures("interpreters")
def test_works_with_the_oldest_pytest(
    online: pytest.Pytester, lab_server: LabServer, oldest_pytest: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    minimum, directory = oldest_pytest
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    online.makepyfile(SUITE)
    result = online.runpytest_subprocess()
    result.stdout.fnmatch_lines([f"platform *, pytest-{minimum}.*"])
    result.assert_outcomes(passed=4)
    assert ups(lab_server) == 2
