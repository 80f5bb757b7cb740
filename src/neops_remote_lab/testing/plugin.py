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
    from neops_remote_lab.testing.session import LabSession

MARKER = "remote_lab"
_CLIENT_FIXTURE = "remote_lab_client"
_session = pytest.StashKey["LabSession"]()


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
    config.pluginmanager.register(_Forecast(), "remote-lab-forecast")
    return result


class _Forecast:
    """The hook of a run with lab fixtures that looks ahead; other runs do without."""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail a test whose topology netlab rejects before the turn has come, and before anything is waited for."""
        from neops_remote_lab.testing.labs import definition_of  # noqa: PLC0415 - has been imported with the declaration

        labs, client = _labs_of(item), definition_of(item, _CLIENT_FIXTURE)
        # A client that a conftest file puts in the place of ours has the only session; and without REMOTE_LAB_URL it is
        # for the fixture to complain.
        ours = client is not None and client.func.__module__ == __name__
        if not (labs and ours and os.environ.get("REMOTE_LAB_URL")):
            return
        rejected = _session_of(item.session).join().rejected
        for spec in labs:
            if spec.path in rejected:
                pytest.fail(f"remote lab {spec.name}: {rejected[spec.path]}", pytrace=False)


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
    """End the session although a second Ctrl-C has cut the end of the fixtures short, or no fixture got as far."""
    if _session in config.stash:
        config.stash[_session].leave()


@pytest.fixture(scope="session")
def remote_lab_client(request: pytest.FixtureRequest) -> Iterator[RemoteLabClient]:
    """The session with the lab host that `REMOTE_LAB_URL` names: active, and ended with the run."""
    lab_session = _session_of(request.session)
    try:
        yield lab_session.wait()
    finally:
        lab_session.leave()


def _session_of(session: pytest.Session) -> LabSession:
    """The one session of a run with the lab host."""
    from neops_remote_lab.testing.session import LabSession, settings_of  # noqa: PLC0415 - slow, only needed with a lab

    if _session not in session.config.stash:
        session.config.stash[_session] = LabSession(session, settings_of(session), _topologies(session))
    return session.config.stash[_session]


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
