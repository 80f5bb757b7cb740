"""The hooks of a run that uses labs."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.testing import failures, options, relay, summary, xdist
from neops_remote_lab.testing.artifacts import ArtifactKeeper
from neops_remote_lab.testing.failures import LabFailed
from neops_remote_lab.testing.labs import (
    definition_behind,
    definition_of,
    expected_labs_of,
    item_of,
    labs_of,
    topologies_of,
    url_of,
)
from neops_remote_lab.testing.neighbours import is_to_be_repeated
from neops_remote_lab.testing.sources import Sources

if TYPE_CHECKING:  # a run may declare labs but select none of their tests; httpx and pydantic are slow to import
    from neops_remote_lab.client.progress import Progress
    from neops_remote_lab.testing.holder import LabHolder
    from neops_remote_lab.testing.keep import LabKeeper
    from neops_remote_lab.testing.session import LabClient, LabSession
    from neops_remote_lab.testing.workers import LabsOfOneProcess

_CLIENT_FIXTURE = "remote_lab_client"
_PLUGIN = "neops_remote_lab.testing.plugin"
_failed = pytest.StashKey[pytest.TestReport | None]()
"""The report of a test's failure before its teardown."""


class LabRun:
    """The session of a pytest run and the lab holder of this process.

    Both outlive the session-scoped fixtures, which plugins that repeat tests may set up more than once.
    """

    def __init__(self, session: pytest.Session) -> None:
        """Raises ValueError if a setting is invalid."""
        Sources.of(session.config).check()
        self._session = session
        self._artifacts = ArtifactKeeper(session.config)
        self._wants_summary = summary.file_of(session.config) is not None
        self._keep_seconds: float = Sources.of(session.config).value("keep_on_failure")
        self._keeper: LabKeeper | None = None
        if not xdist.is_worker(session.config):
            failures.register(session.config)
        self._lab_sessions: dict[str | None, LabSession] = {}
        self._shown: _Shown | None = None
        self._holder: LabHolder | None = None
        self._signals = ExitStack()

    @cached_property
    def _workers(self) -> LabsOfOneProcess:
        return xdist.labs_of(self._session.config)

    @cached_property
    def _workers_by_host(self) -> dict[str | None, LabsOfOneProcess]:
        return {None: self._workers}

    def _workers_of(self, url: str | None) -> LabsOfOneProcess:
        """Coordinates the processes of the run on a lab host. None: the lab host of the settings."""
        if url not in self._workers_by_host:
            self._workers_by_host[url] = self._workers.for_host(url)
        return self._workers_by_host[url]

    @cached_property
    def _progress(self) -> Progress:
        return relay.progress_of(self._session.config)

    def wait(self, request: pytest.FixtureRequest) -> LabClient:
        """The client of an active session, for the fixture that provides it to tests."""
        __tracebackhide__ = True
        self._shown = _Shown(url_of(item_of(request)), definition_behind(request), request)
        return self._joined(self._shown.url).wait()

    def leave(self) -> None:
        """End the sessions. May be called repeatedly."""
        for lab_session in self._lab_sessions.values():
            lab_session.leave()
        self._signals.close()

    @contextmanager
    def holding(self, client: LabClient) -> Iterator[LabHolder]:
        """A context with the lab holder of a client, which may come from a conftest file."""
        from neops_remote_lab.client.connection import CLOSE_TIMEOUT  # noqa: PLC0415 - slow, and only needed with a lab
        from neops_remote_lab.testing.holder import LabHolder  # noqa: PLC0415
        from neops_remote_lab.testing.workers import LabsOfOneProcess  # noqa: PLC0415

        urls = [url for url, lab_session in self._lab_sessions.items() if lab_session.client is client]
        ours = bool(urls)
        if self._holder is None or self._holder.client is not client:
            workers = self._workers_of(urls[0]) if urls else LabsOfOneProcess()
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
        failures.begin(item)
        item.stash[_failed] = None
        # A client from a conftest file has a session of its own. Without an address, the fixture reports the error.
        ours = client is not None and client.func.__module__ == _PLUGIN
        url = url_of(item)
        has_address = url is not None or options.is_given(item.config, "url")
        if not (labs and ours and has_address) or item.config.getoption("setuponly", False):
            return
        rejected = self._joined(url).join().rejected
        for spec in labs:
            if spec.topology in rejected:
                raise LabFailed(spec, rejected[spec.topology])

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Mark the report of a failed lab. Collect artifacts and summary data of a test's lab before it is released."""
        report = yield
        if call.excinfo is not None and isinstance(call.excinfo.value, LabFailed):
            failures.mark(item, report, call.excinfo.value)
        holder, artifacts = self._holder, None
        has_ended = call.when == "call" or (call.when == "setup" and report.failed)
        if has_ended and holder is not None and holder.can_explain(item):
            artifacts = self._artifacts.keep(item, report, holder.client)
        if has_ended and report.failed:
            item.stash[_failed] = report
        lab = (holder and holder.lab_of(item)) or next(iter(labs_of(item)), None)
        if lab is not None and self._wants_summary:
            start = holder.take_start() if holder else None
            lab_session = self._lab_sessions.get(url_of(item))
            wait = lab_session.waited if lab_session else None
            summary.attach(report, summary.LabUse(lab.name, lab.path.name, start, wait, artifacts))
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Keep the lab of a failed test while its fixtures live, if wanted. Release a lab after its last test."""
        for spec in labs_of(item):
            self._workers_of(url_of(item)).finish(spec.key, item.nodeid)
        self._keep_lab_of(item)
        try:
            return (yield)
        finally:
            if nextitem is not None:
                self._release_for(nextitem)

    @pytest.hookimpl(tryfirst=True)
    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector) -> None:
        """Show how to reach the lab before the debugger of `--pdb` starts."""
        if isinstance(node, pytest.Item) and node.config.option.usepdb:
            self._open_lab_of(node)

    def _keep_lab_of(self, item: pytest.Item) -> None:
        try:
            # With --pdb, the lab was kept for as long as the debugger ran.
            if self._open_lab_of(item) and self._keeper and not item.config.option.usepdb:
                self._keeper.wait()
        finally:
            if self._keeper and self._keeper.close():
                self._keep_seconds = 0
                if self._holder:
                    self._holder.spoil()

    def _open_lab_of(self, item: pytest.Item) -> bool:
        """Open the lab of a failed test to the user, if that is wanted and the first one of the run."""
        report, holder = item.stash.get(_failed, None), self._holder
        spec = holder.lab_of(item) if holder else None
        if not (self._keep_seconds and report and holder and spec) or is_to_be_repeated(item):
            return False
        from neops_remote_lab.testing.keep import LabInUse, LabKeeper  # noqa: PLC0415 - few runs need it

        if self._keeper is None:
            self._keeper = LabKeeper(self._keep_seconds, self._progress)
        if not self._keeper.is_open and self._workers.has_kept():
            return False
        is_open = self._keeper.open(item, report, LabInUse(spec, holder.client, holder.devices))
        if is_open:
            self._workers.note_kept()
        return is_open

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """End the session after the last fixture."""
        try:
            return (yield)
        finally:
            self.leave()

    def _release_for(self, item: pytest.Item) -> None:
        """Release what the next test does not use: the lab, or the client of another lab host with its lab."""
        if self._shown is not None and self._shown.url != url_of(item):
            shown, self._shown = self._shown, None
            try:
                shown.definition.finish(shown.request)  # type: ignore[arg-type]  # it is a SubRequest
            finally:
                self._leave_unless_needed(shown.url, item)
        elif self._holder is not None:
            self._holder.keep_only(expected_labs_of(item))

    def _leave_unless_needed(self, url: str | None, item: pytest.Item) -> None:
        """End the session with a lab host that no test from this one on uses; the controller ends those of workers."""
        items = self._session.items
        later = items[items.index(item) :]
        needed = any(url_of(other) == url and (_uses_client(other) or expected_labs_of(other)) for other in later)
        if not needed and not xdist.is_worker(self._session.config) and url in self._lab_sessions:
            self._lab_sessions.pop(url).leave()

    def _joined(self, url: str | None) -> LabSession:
        """The session of the run with a lab host, created on first use."""
        __tracebackhide__ = True
        if url not in self._lab_sessions:
            from neops_remote_lab.testing.interrupt import ended_by_signals  # noqa: PLC0415 - slow
            from neops_remote_lab.testing.session import LabSession, settings_of  # noqa: PLC0415

            settings, topologies = settings_of(self._session, url), _topologies(self._session, url)
            if not self._lab_sessions and not xdist.is_worker(self._session.config):
                # the controller ends the sessions of its workers
                self._signals.enter_context(ended_by_signals(self._end_at_once))
            self._lab_sessions[url] = LabSession(self._session, settings, topologies, url, self._progress)
        return self._lab_sessions[url]

    def _end_at_once(self) -> None:
        """End the sessions from another thread than the main one, which may be in the middle of a call."""
        for lab_session in list(self._lab_sessions.values()):
            lab_session.end_at_once()


@dataclass(frozen=True)
class _Shown:
    """The fixture that provides a client to tests, and the address of its lab host if a marker names it."""

    url: str | None
    definition: pytest.FixtureDef[Any]
    request: pytest.FixtureRequest


def _uses_client(item: pytest.Item) -> bool:
    return _CLIENT_FIXTURE in getattr(item, "fixturenames", ())


def _topologies(session: pytest.Session, url: str | None) -> list[Path | TopologyFiles]:
    """The topologies for a lab host; none if a test uses only the client, so that rejections do not end the session."""
    items = [item for item in session.items if url_of(item) == url]
    return topologies_of(items) if all(map(labs_of, filter(_uses_client, items))) else []
