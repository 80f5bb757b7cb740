"""The hooks of a run that uses labs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.testing import options, relay, summary, xdist
from neops_remote_lab.testing.artifacts import ArtifactKeeper
from neops_remote_lab.testing.labs import definition_of, expected_labs_of, labs_of, topologies_of

if TYPE_CHECKING:  # a run may declare labs but select none of their tests; httpx and pydantic are slow to import
    from neops_remote_lab.testing.holder import LabHolder
    from neops_remote_lab.testing.progress import Progress
    from neops_remote_lab.testing.session import LabClient, LabSession
    from neops_remote_lab.testing.workers import LabsOfOneProcess

_CLIENT_FIXTURE = "remote_lab_client"
_PLUGIN = "neops_remote_lab.testing.plugin"


class LabRun:
    """The session of a pytest run and the lab holder of this process.

    Both outlive the session-scoped fixtures, which plugins that repeat tests may set up more than once.
    """

    def __init__(self, session: pytest.Session) -> None:
        """Raises ValueError if a setting is invalid."""
        self._session = session
        self._artifacts = ArtifactKeeper(session.config)
        self._wants_summary = summary.file_of(session.config) is not None
        self._lab_session: LabSession | None = None
        self._holder: LabHolder | None = None

    @cached_property
    def _workers(self) -> LabsOfOneProcess:
        return xdist.labs_of(self._session.config)

    @cached_property
    def _progress(self) -> Progress:
        return relay.progress_of(self._session.config)

    def wait(self) -> LabClient:
        """The client of an active session."""
        __tracebackhide__ = True
        return self._joined().wait()

    def leave(self) -> None:
        """End the session. May be called repeatedly."""
        if self._lab_session is not None:
            self._lab_session.leave()

    @contextmanager
    def holding(self, client: LabClient) -> Iterator[LabHolder]:
        """A context with the lab holder of a client, which is ours or one from a conftest file."""
        from neops_remote_lab.client.connection import CLOSE_TIMEOUT  # noqa: PLC0415 - slow, and only needed with a lab
        from neops_remote_lab.testing.holder import LabHolder  # noqa: PLC0415
        from neops_remote_lab.testing.workers import LabsOfOneProcess  # noqa: PLC0415

        ours = self._lab_session is not None and self._lab_session.client is client
        if self._holder is None or self._holder.client is not client:
            workers = self._workers if ours else LabsOfOneProcess()
            self._holder = LabHolder(self._session, client, workers, self._progress)
        try:
            yield self._holder
        finally:
            self._holder.let_go(
                CLOSE_TIMEOUT if ours else None
            )  # a short timeout, because the end of the session releases it anyway

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail a test whose topology netlab rejects, before the session is active and without waiting."""
        labs, client = labs_of(item), definition_of(item, _CLIENT_FIXTURE)
        self._artifacts.begin(item)
        # A client from a conftest file has a session of its own. Without an address, the fixture reports the error.
        ours = client is not None and client.func.__module__ == _PLUGIN
        if not (labs and ours and options.is_given(item.config, "url")) or item.config.getoption("setuponly", False):
            return
        rejected = self._joined().join().rejected
        for spec in labs:
            if spec.topology in rejected:
                pytest.fail(f"remote lab {spec.name}: {rejected[spec.topology]}", pytrace=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Collect artifacts and summary data of a test's lab before it is released."""
        report = yield
        holder, artifacts = self._holder, None
        has_ended = call.when == "call" or (call.when == "setup" and report.failed)
        if has_ended and holder is not None and holder.can_explain(item):
            artifacts = self._artifacts.keep(item, report, holder.client)
        lab = (holder and holder.lab_of(item)) or next(iter(labs_of(item)), None)
        if lab is not None and self._wants_summary:
            start = holder.take_start() if holder else None
            wait = self._lab_session.waited if self._lab_session else None
            summary.attach(report, summary.LabUse(lab.name, lab.path.name, start, wait, artifacts))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Release a shared lab after its last test."""
        for spec in labs_of(item):
            self._workers.finish(spec.key, item.nodeid)
        try:
            return (yield)
        finally:
            if nextitem is not None and self._holder is not None:
                self._holder.keep_only(expected_labs_of(nextitem))

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """End the session after the last fixture."""
        try:
            return (yield)
        finally:
            self.leave()

    def _joined(self) -> LabSession:
        """The session of the run, created on first use."""
        __tracebackhide__ = True
        if self._lab_session is None:
            from neops_remote_lab.testing.session import LabSession, settings_of  # noqa: PLC0415 - slow

            settings = settings_of(self._session)
            self._lab_session = LabSession(self._session, settings, _topologies(self._session), self._progress)
        return self._lab_session


def _topologies(session: pytest.Session) -> list[Path | TopologyFiles]:
    """The topologies of the run; none if a test uses only the client, so that rejections do not end the session."""
    items = [item for item in session.items if _CLIENT_FIXTURE in getattr(item, "fixturenames", ())]
    return topologies_of(session.items) if all(map(labs_of, items)) else []
