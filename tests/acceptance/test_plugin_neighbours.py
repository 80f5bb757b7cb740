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

from tests.plugin import ups
from tests.server import LabServer

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"

SUITE = """
    import pytest

    def test_plain(): pass
    def test_shared_1(shared): assert shared
    def test_fresh(fresh): assert fresh
    def test_shared_2(router): assert router
"""
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
"""What each of them is loaded by: `-p` and its name come first."""


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_gets_along_with_a_plugin(online: pytest.Pytester, lab_server: LabServer, name: str) -> None:
    neighbour = NEIGHBOURS[name]
    online.makepyfile(neighbour.suite)
    if neighbour.features:
        online.makefile(".feature", **neighbour.features)
    result = online.runpytest_subprocess(*neighbour.options)
    assert result.parseoutcomes().get("passed") == neighbour.passed, result.stdout.str()
    assert result.ret == pytest.ExitCode.OK
    assert ups(lab_server) == neighbour.starts


def test_gets_along_with_all_of_them_at_once(online: pytest.Pytester, lab_server: LabServer) -> None:
    online.makepyfile(SUITE)
    options = [word for name in PLUGINS for word in ("-p", name)]
    result = online.runpytest_subprocess(*options, "--reruns", "1", "--timeout", "60", *ASYNCIO)
    result.assert_outcomes(passed=4)
    assert ups(lab_server) == 2


@pytest.fixture(scope="session")
def oldest_pytest() -> tuple[str, Path]:
    """The oldest version of pytest that we support, and a directory that has it, which is kept from run to run."""
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
