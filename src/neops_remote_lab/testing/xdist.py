"""One session for all workers of a pytest-xdist run.

Every worker joins with the same key, which makes it the same session. A worker leaves without ending it; the
controller ends it when the last one is down. Every report of a test carries what its worker holds, so that the
controller can let go of it when that worker crashes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:  # xdist need not be installed, and httpx has to wait until a lab is used
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from neops_remote_lab.client import RemoteLabClient

_SESSION = "remote_lab_session"
_REFERENCES = "remote_lab_references"
_FAREWELL = "remote_lab_farewell"


def register(config: pytest.Config) -> None:
    """Add the hooks that this process of a run with workers needs."""
    if is_worker(config):
        config.pluginmanager.register(Worker(), "remote-lab-worker")
    else:
        config.pluginmanager.register(Controller(), "remote-lab-controller")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that run the tests."""
    return hasattr(config, "workerinput")


def session_key(config: pytest.Config) -> str | None:
    """What the workers of one run have in common, and nobody else; None in a run without workers."""
    return _key(config.workerinput) if is_worker(config) else None  # type: ignore[attr-defined]


def announce(config: pytest.Config, client: RemoteLabClient) -> None:
    """Tell the controller, if there is one, which session is to be ended."""
    worker = config.pluginmanager.get_plugin("remote-lab-worker")
    if worker is not None:
        worker.client = client
        config.workeroutput[_SESSION] = client.session_id  # type: ignore[attr-defined]


def say_farewell(config: pytest.Config, reason: str, status: int) -> None:
    """Tell the controller, if there is one, why no worker can go on, and what exit status it means."""
    if is_worker(config):
        config.workeroutput[_FAREWELL] = reason, int(status)  # type: ignore[attr-defined]


class Worker:
    """Hooks of a process that runs tests."""

    def __init__(self) -> None:
        self.client: RemoteLabClient | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Let the report carry the session and the references that are held."""
        report = yield
        if self.client is not None:
            # attributes of a report reach the controller as they are, in contrast to its properties unseen by users
            report.__dict__[_SESSION] = self.client.session_id
            report.__dict__[_REFERENCES] = list(self.client.references)
        return report


class Controller:
    """Hooks of the process that hands out the tests: they end the workers' session, however the run ends."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._running: set[str] = set()
        self._sessions: set[str] = set()
        self._held: dict[str, tuple[str, list[str]]] = {}

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Remember who works, and by which key the session can be found."""
        self._key = _key(node.workerinput)
        self._running.add(node.gateway.id)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember what a worker holds."""
        session_id = report.__dict__.get(_SESSION)
        if session_id is not None:
            self._sessions.add(session_id)
            self._held[report.__dict__["node"].gateway.id] = session_id, report.__dict__[_REFERENCES]

    def pytest_testnodedown(self, node: WorkerController) -> None:
        """Clear up after a worker: one that crashed would keep the others from their labs."""
        session_id, references = self._held.pop(node.gateway.id, ("", []))
        output: dict[str, Any] | None = getattr(node, "workeroutput", None)
        if output is None:
            _release(session_id, references)
            return
        self._running.discard(node.gateway.id)
        if _SESSION in output:
            self._sessions.add(output[_SESSION])
        if _FAREWELL in output:
            self._running, self._sessions = set(), set()  # there is no session, or none any more
            _leave(*output[_FAREWELL])

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """End the session once all workers are down."""
        try:
            return (yield)
        finally:
            if self._sessions or self._running:
                _end(self._sessions, self._key)


def _key(workerinput: dict[str, Any]) -> str:
    return f"pytest-xdist-{workerinput['testrunuid']}"


def _leave(reason: str, status: int) -> NoReturn:
    if status == pytest.ExitCode.USAGE_ERROR:
        raise pytest.UsageError(reason)
    pytest.exit(reason, returncode=status)


def _release(session_id: str, references: list[str]) -> None:
    url = os.environ.get("REMOTE_LAB_URL")
    if not (url and references):
        return
    import httpx  # noqa: PLC0415 - slow, and rarely needed

    from neops_remote_lab.connection import CLOSE_TIMEOUT, ServerConnection  # noqa: PLC0415

    with ServerConnection(url) as server, contextlib.suppress(httpx.HTTPError):  # the session's end lets go as well
        for reference in references:
            server.release(session_id, reference, server.now() + CLOSE_TIMEOUT)


def _end(sessions: set[str], key: str | None) -> None:
    """End the sessions, or the one behind the key when a worker vanished before it could name it."""
    url = os.environ.get("REMOTE_LAB_URL")
    if not (url and key):
        return
    from neops_remote_lab.connection import ServerConnection  # noqa: PLC0415 - slow, and needed in runs with labs alone

    with ServerConnection(url) as server:
        if not sessions:
            server.end_session_of(key)
        for session_id in sessions:
            server.end_session(session_id)
