"""The pytest plugin: puts the tests in the order of their labs and gives each the lab that it asks for.

Every pytest run loads this module, and few use a lab: anything else is imported once a conftest file has declared one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from neops_remote_lab.client import RemoteLabClient
    from neops_remote_lab.testing.holder import LabHolder
    from neops_remote_lab.testing.labs import LabSpec

MARKER = "remote_lab"
_CLIENT_FIXTURE = "remote_lab_client"
_client = pytest.StashKey["RemoteLabClient"]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and what pytest-xdist needs."""
    config.addinivalue_line("markers", f"{MARKER}: uses a remote lab; set by the plugin, for `-m`")
    if hasattr(config, "workerinput") or config.pluginmanager.has_plugin("xdist"):
        from neops_remote_lab.testing import xdist  # noqa: PLC0415 - of no use to other runs

        xdist.register(config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Mark the tests that use a lab before `-m` chooses, and put those of one lab together after others have sorted."""
    if not _labs_are_declared():
        return (yield)
    from neops_remote_lab.testing import xdist  # noqa: PLC0415 - only needed with a lab
    from neops_remote_lab.testing.labs import in_order_of_labs, labs_of, refuse_several_labs  # noqa: PLC0415

    for item in items:
        if labs_of(item):
            item.add_marker(MARKER)
    result = yield
    try:
        refuse_several_labs(items)
    except pytest.UsageError as error:
        xdist.say_farewell(config, str(error), pytest.ExitCode.USAGE_ERROR)
        raise
    items[:] = in_order_of_labs(items)
    return result


class _LabRun:
    """The hooks of a run that uses labs; other runs do without."""

    def __init__(self, holder: LabHolder) -> None:
        self._holder = holder

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> Generator[None, object, object]:
        """Release a lab that is kept from test to test once the last of them is done."""
        try:
            return (yield)
        finally:
            if nextitem is not None:
                self._holder.keep_only(_labs_of(nextitem))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the session although a second Ctrl-C has cut the end of the fixtures short."""
    if _client in config.stash:
        from neops_remote_lab.testing.session import leave  # noqa: PLC0415 - has been imported with the client

        leave(config, config.stash[_client])


@pytest.fixture(scope="session")
def remote_lab_client(request: pytest.FixtureRequest) -> Iterator[RemoteLabClient]:
    """The session with the lab host that `REMOTE_LAB_URL` names: active, and ended with the run."""
    from neops_remote_lab.testing.session import open_session  # noqa: PLC0415 - slow, and only needed with a lab
    from neops_remote_lab.testing.settings import LabHostSettings  # noqa: PLC0415

    with open_session(request.session, LabHostSettings.read(os.environ), _topologies(request.session)) as client:
        request.config.stash[_client] = client
        yield client


@pytest.fixture(scope="session")
def _remote_lab_holder(request: pytest.FixtureRequest, remote_lab_client: RemoteLabClient) -> Iterator[LabHolder]:
    from neops_remote_lab.testing.holder import LabHolder  # noqa: PLC0415 - slow, and only needed with a lab

    # a client that a conftest file puts in the place of ours may know of none
    holder = LabHolder(request.session, remote_lab_client, getattr(remote_lab_client, "rejected", {}))
    request.config.pluginmanager.register(_LabRun(holder), "remote-lab-run")
    yield holder
    holder.let_go()


def _topologies(session: pytest.Session) -> list[Path]:
    """The labs of the run, unless a test needs the client alone: then a session without any of them has a use."""
    from neops_remote_lab.testing.labs import topologies_of  # noqa: PLC0415 - only needed with a lab

    items = [item for item in session.items if _CLIENT_FIXTURE in getattr(item, "fixturenames", ())]
    return topologies_of(items) if all(map(_labs_of, items)) else []


def _labs_are_declared() -> bool:
    return "neops_remote_lab.testing.labs" in sys.modules  # which the first declaration imports


def _labs_of(item: pytest.Item) -> tuple[LabSpec, ...]:
    if not _labs_are_declared():
        return ()
    from neops_remote_lab.testing.labs import labs_of  # noqa: PLC0415 - has been imported with the declaration

    return labs_of(item)
