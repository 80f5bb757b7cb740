"""The pytest plugin beside other plugins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.plugin import ups
from tests.server import LabServer

SUITE = """
    import pytest

    def test_plain(): pass
    def test_shared_1(shared): assert shared
    def test_fresh(fresh): assert fresh
    def test_shared_2(router): assert router
"""


@dataclass(frozen=True)
class Neighbour:
    """A plugin, and a suite that uses it.

    Attributes:
        options: how it is loaded and used.
        suite: a test module.
        passed: how many tests pass.
        starts: how often a lab is started.
    """

    options: tuple[str, ...]
    suite: str
    passed: int
    starts: int


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
        ("-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
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
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_gets_along_with_a_plugin(online: pytest.Pytester, lab_server: LabServer, name: str) -> None:
    neighbour = NEIGHBOURS[name]
    online.makepyfile(neighbour.suite)
    result = online.runpytest_subprocess(*neighbour.options)
    assert result.parseoutcomes().get("passed") == neighbour.passed, result.stdout.str()
    assert result.ret == pytest.ExitCode.OK
    assert ups(lab_server) == neighbour.starts
