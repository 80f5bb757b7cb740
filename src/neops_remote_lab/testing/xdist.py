"""One session for all workers of a pytest-xdist run.

All workers join with the same key, so they share one session. A worker leaves the session without ending it; the
controller ends it after the last worker. Workers on the controller's machine coordinate in a shared directory. For a
worker on another machine, each test report carries its references, so that the controller can release them if the
worker crashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from neops_remote_lab.testing import options

if TYPE_CHECKING:  # xdist is optional, and httpx is slow to import
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from neops_remote_lab.client.connection import ServerConnection
    from neops_remote_lab.testing.lab_socket import LabsOfController
    from neops_remote_lab.testing.local_labs import LocalLabs
    from neops_remote_lab.testing.session import LabClient
    from neops_remote_lab.testing.workers import LabsOfOneProcess

_SESSION = "remote_lab_session"
_SESSIONS = "remote_lab_sessions"
_RUN_END = "remote_lab_run_end"
_DIRECTORY = "remote_lab_directory"
_COPIES = "remote_lab_copies"
_LABS = "remote_lab_labs"


def register(config: pytest.Config) -> None:
    """Register the hooks of a worker or of the controller."""
    if is_worker(config):
        config.pluginmanager.register(Worker(), "remote-lab-worker")
    else:
        from neops_remote_lab.testing import failures, relay  # noqa: PLC0415 - not needed in a worker

        failures.register(config)
        config.pluginmanager.register(Controller(config), "remote-lab-controller")
        config.pluginmanager.register(relay.Relay(config), relay.PLUGIN)


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def session_key(config: pytest.Config) -> str | None:
    """A key that only the workers of one run share; None in a run without workers."""
    return _key(config.workerinput) if is_worker(config) else None  # type: ignore[attr-defined]


def labs_of(config: pytest.Config) -> LabsOfOneProcess:
    """The implementation that coordinates labs with the other processes of the run."""
    from neops_remote_lab.testing import workers  # noqa: PLC0415 - only needed with a lab

    if not is_worker(config):
        return workers.LabsOfOneProcess()
    workerinput: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    if not workerinput.get(_DIRECTORY):
        return workers.LabsApart()
    return workers.LabsAmongWorkers(Path(workerinput[_DIRECTORY]), workerinput["workerid"], workerinput[_COPIES])


def copy_of(config: pytest.Config) -> str:
    """The name of this worker with `--dist each`, otherwise an empty string."""
    workerinput: dict[str, Any] = getattr(config, "workerinput", {})
    return str(workerinput["workerid"]) if workerinput.get(_COPIES, 1) > 1 else ""


def labs_of_controller(config: pytest.Config) -> LabsOfController | None:
    """The labs of the controller in a run without a server; None if this process is not a local worker of one."""
    if not (is_worker(config) and (address := config.workerinput.get(_LABS))):  # type: ignore[attr-defined]
        return None
    from neops_remote_lab.testing.lab_socket import LabsOfController  # noqa: PLC0415 - only for a run without a server

    return LabsOfController(address)


def note_use(config: pytest.Config, url: str | None) -> None:
    """Tell a controller on this machine that the run will have a session.

    Args:
        url: the address of the lab host, if a marker names it.
    """
    if is_worker(config) and (directory := config.workerinput.get(_DIRECTORY)):  # type: ignore[attr-defined]
        digest = hashlib.sha256((url or "").encode(errors="surrogateescape")).hexdigest()
        Path(directory, f"{_SESSION}-{digest}").write_text(url or "", encoding="utf-8", errors="surrogateescape")


def announce(config: pytest.Config, client: LabClient, url: str | None) -> None:
    """Tell the controller, if there is one, which session it must end.

    Args:
        url: the address of the lab host, if a marker names it.
    """
    worker = config.pluginmanager.get_plugin("remote-lab-worker")
    if worker is not None:
        worker.clients[url] = client
        sessions = config.workeroutput.setdefault(_SESSIONS, [])  # type: ignore[attr-defined]
        sessions.append((url, client.session_id))


def report_end(config: pytest.Config, reason: str, status: int) -> None:
    """Tell the controller, if there is one, why the run must end, and with which exit status."""
    if is_worker(config):
        config.workeroutput[_RUN_END] = reason, int(status)  # type: ignore[attr-defined]


class Worker:
    """Hooks of a worker."""

    def __init__(self) -> None:
        self.clients: dict[str | None, LabClient] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach the sessions and the held references to the report."""
        report = yield
        if self.clients:
            # Attributes of a report reach the controller, but unlike properties they are not shown to users.
            report.__dict__[_SESSIONS] = [
                (url, client.session_id, list(client.references)) for url, client in self.clients.items()
            ]
        return report


class Controller:
    """Hooks of the controller: they end the session of the workers, however the run ends."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._signals = contextlib.ExitStack()
        self._key: str | None = None
        self._directory: Path | None = None
        self._has_remote = False
        self._running: set[str] = set()
        self._sessions: set[tuple[str | None, str]] = set()
        self._held: dict[str, list[tuple[str | None, str, list[str]]]] = {}
        self._labs: LocalLabs | None = None

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Pass the shared directory to a worker, and remember the key of the session."""
        if self._directory is None:
            from neops_remote_lab.testing.interrupt import ended_by_signals  # noqa: PLC0415 - imports this module

            self._directory = Path(tempfile.mkdtemp(prefix="neops-remote-lab-run-"))
            self._signals.enter_context(ended_by_signals(self._end, self._uses_labs))
            self._offer_labs(self._directory / "labs")
        self._key = _key(node.workerinput)
        self._running.add(node.gateway.id)
        self._has_remote |= not _is_local(node)
        node.workerinput[_DIRECTORY] = str(self._directory) if _is_local(node) else ""
        node.workerinput[_LABS] = str(self._directory / "labs") if self._labs is not None and _is_local(node) else ""
        node.workerinput[_COPIES] = len(node.nodemanager.specs) if node.config.getoption("dist") == "each" else 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store the references of a worker and remove them from the report, which other plugins may write to a file."""
        held = report.__dict__.pop(_SESSIONS, None)
        if held is not None:
            self._sessions |= {(url, session_id) for url, session_id, _ in held}
            self._held[report.__dict__["node"].gateway.id] = held

    def pytest_testnodedown(self, node: WorkerController) -> None:
        """Release the references of a crashed worker, which would block the labs of the others."""
        held = self._held.pop(node.gateway.id, [])
        output: dict[str, Any] | None = getattr(node, "workeroutput", None)
        if output is None:
            if not node.workerinput[_DIRECTORY]:  # otherwise the next worker finds them in `lab.json`
                for url, session_id, references in held:
                    _release(_server(self._config, url), session_id, references)
            return
        self._running.discard(node.gateway.id)
        self._sessions |= set(map(tuple, output.get(_SESSIONS, [])))
        if _RUN_END in output:
            self._running, self._sessions = set(), set()  # there is no session any more
            _leave(*output[_RUN_END])

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """End the session after all workers have ended."""
        try:
            return (yield)
        finally:
            self._end()

    def pytest_unconfigure(self) -> None:
        """Remove the shared directory."""
        self._signals.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _offer_labs(self, address: Path) -> None:
        """In a run without a server, provide the labs of this machine to the workers."""
        if not options.is_given(self._config, "url"):
            return
        from neops_remote_lab.testing.sources import Sources  # noqa: PLC0415 - only needed with a lab host

        if not Sources.of(self._config).is_local():
            return
        from neops_remote_lab.testing.lab_socket import LabSocket  # noqa: PLC0415 - only for a run without a server
        from neops_remote_lab.testing.local_labs import local_labs  # noqa: PLC0415

        with contextlib.suppress(ValueError):  # the workers report the invalid setting
            self._labs = local_labs(self._config)
            self._signals.callback(LabSocket(self._labs, str(address)).close)

    def _uses_labs(self) -> bool:
        if self._directory is None:
            return False
        return bool(self._sessions) or self._has_remote or bool(self._noted())

    def _noted(self) -> set[str | None]:
        """The addresses, as markers name them, of the lab hosts that workers of this machine use."""
        notes = self._directory.glob(f"{_SESSION}-*") if self._directory is not None else ()
        return {note.read_text(encoding="utf-8", errors="surrogateescape") or None for note in notes}

    def _end(self) -> None:
        sessions, unknown = self._sessions, bool(self._running) and self._uses_labs()
        self._sessions, self._running = set(), set()
        if self._labs is not None:
            self._labs.close()
        for url in {url for url, _ in sessions} | (self._noted() or {None} if unknown else set()):
            known = {session_id for host, session_id in sessions if host == url}
            _end(_server(self._config, url), known, self._key)


def _is_local(node: WorkerController) -> bool:
    """Whether a worker runs on this machine."""
    spec = node.gateway.spec
    return bool(spec.popen) and not spec.via


def _key(workerinput: dict[str, Any]) -> str:
    return f"pytest-xdist-{workerinput['testrunuid']}"


def _leave(reason: str, status: int) -> NoReturn:
    if status == pytest.ExitCode.USAGE_ERROR:
        raise pytest.UsageError(reason)
    pytest.exit(reason, returncode=status)


def _release(server: ServerConnection | None, session_id: str, references: list[str]) -> None:
    if server is None or not references:
        return
    import httpx  # noqa: PLC0415 - slow, and rarely needed

    from neops_remote_lab.client.connection import CLOSE_TIMEOUT  # noqa: PLC0415

    with server, contextlib.suppress(httpx.HTTPError):  # the end of the session releases them too
        for reference in references:
            server.release(session_id, reference, server.now() + CLOSE_TIMEOUT)


def _end(server: ServerConnection | None, sessions: set[str], key: str | None) -> None:
    """End the sessions; if none is known because a worker crashed early, the session with the key."""
    if server is None or not key:
        return
    with server:
        if not sessions:
            server.end_session_of(key)
        for session_id in sessions:
            server.end_session(session_id)


def _server(config: pytest.Config, url: str | None) -> ServerConnection | None:
    """A connection of the controller; None if the settings are invalid, so that workers have none either.

    Args:
        url: the address of the server, if a marker names it.
    """
    # slow, and only needed in runs with labs
    from neops_remote_lab.client import InvalidSetting  # noqa: PLC0415
    from neops_remote_lab.client.connection import ServerConnection  # noqa: PLC0415
    from neops_remote_lab.testing.settings import LabHostSettings  # noqa: PLC0415
    from neops_remote_lab.testing.sources import Sources  # noqa: PLC0415

    try:
        settings = LabHostSettings.read(replace(Sources.of(config), marked_url=url))
        return None if settings.is_local else ServerConnection(settings.url, credentials=settings.credentials)
    except (InvalidSetting, RuntimeError):  # the workers have reported the error
        return None
