"""Fixtures for every kind of test."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from tests.fork_server import ForkServer, Program
from tests.postgresql import Cluster, problem, running_cluster
from tests.server import LabServer, running_server
from tests.stores import NewDatabase, new_sqlite_file

REAL_NETLAB = (
    "tests/acceptance/test_real_netlab.py",
    "tests/acceptance/test_real_several_labs.py",
    "tests/acceptance/test_real_hosts.py",
    "tests/acceptance/test_real_devices.py",
    "tests/acceptance/test_real_directories.py",
    "tests/acceptance/test_real_access.py",
    "tests/acceptance/test_readme.py",
)
"""Files whose tests use the real netlab of this machine. Only one process at a time may use it."""


class FileScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Runs the tests of a file on one worker, and all files that use the real netlab on the same one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return REAL_NETLAB[0] if path in REAL_NETLAB else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    return FileScheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two workers per core, because a test waits for other processes half of the time."""
    return 2 * len(os.sched_getaffinity(0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that all workers finish at about the same time."""
    items.sort(key=lambda item: not item.nodeid.startswith(REAL_NETLAB))


@pytest.fixture(scope="session", autouse=True)
def fork_servers() -> Iterator[None]:
    """Fork programs instead of starting interpreters, except under coverage, which must measure each interpreter."""
    if any(name.startswith("COVERAGE_PROCESS") for name in os.environ):
        yield
        return
    ForkServer.of_this_run = {program: ForkServer(program) for program in Program}
    yield
    for fork_server in ForkServer.of_this_run.values():
        fork_server.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server, started for the first test that requests it."""
    if reason := problem():
        pytest.skip(reason)
    with running_cluster() as started:
        yield started


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """A factory of databases without sessions; its tests run once with SQLite and once with PostgreSQL."""
    if request.param == "sqlite":
        return new_sqlite_file
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.new_database


@pytest.fixture
def database(new_database: NewDatabase, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without sessions."""
    with new_database(tmp_path) as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def certificates() -> Iterator[None]:
    """Load the trusted certificates only once; `httpx.get` and the like would load them in each call, in 20 ms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", functools.cache(httpx.create_ssl_context))
        yield


@pytest.fixture
def interpreters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a new interpreter for each program, for tests of what it imports."""
    monkeypatch.setattr(ForkServer, "of_this_run", {})


@pytest.fixture
def lab_server(tmp_path: Path) -> Iterator[LabServer]:
    """A real server process that runs the fake netlab."""
    with running_server(tmp_path) as server:
        yield server
