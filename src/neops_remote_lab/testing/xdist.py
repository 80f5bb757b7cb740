"""One session for all workers of a pytest-xdist run.

Every worker joins with the same key, which makes it the same session. A worker leaves without ending it; the
controller ends it when the last one is down. Workers of the controller's machine share a directory, in which they
arrange who has the lab. A worker of another machine cannot: every report of its tests carries what it holds, so that
the controller can let go of it when that worker crashes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from neops_remote_lab.testing import options

if TYPE_CHECKING:  # xdist need not be installed, and httpx has to wait until a lab is used
    from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

    from neops_remote_lab.client.connection import ServerConnection
    from neops_remote_lab.testing.lab_socket import LabsOfController
    from neops_remote_lab.testing.local_labs import LocalLabs
    from neops_remote_lab.testing.session import LabClient
    from neops_remote_lab.testing.workers import LabsOfOneProcess

_SESSION = "remote_lab_session"
_REFERENCES = "remote_lab_references"
_FAREWELL = "remote_lab_farewell"
_DIRECTORY = "remote_lab_directory"
_COPIES = "remote_lab_copies"
_LABS = "remote_lab_labs"


def register(config: pytest.Config) -> None:
    """Add the hooks that this process of a run with workers needs."""
    if is_worker(config):
        config.pluginmanager.register(Worker(), "remote-lab-worker")
    else:
        config.pluginmanager.register(Controller(config), "remote-lab-controller")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of several that run the tests."""
    return hasattr(config, "workerinput")


def session_key(config: pytest.Config) -> str | None:
    """What the workers of one run have in common, and nobody else; None in a run without workers."""
    return _key(config.workerinput) if is_worker(config) else None  # type: ignore[attr-defined]


def labs_of(config: pytest.Config) -> LabsOfOneProcess:
    """How this process shares the lab with the others of its run."""
    from neops_remote_lab.testing import workers  # noqa: PLC0415 - only needed with a lab

    if not is_worker(config):
        return workers.LabsOfOneProcess()
    workerinput: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    if not workerinput.get(_DIRECTORY):
        return workers.LabsApart()
    return workers.LabsAmongWorkers(Path(workerinput[_DIRECTORY]), workerinput["workerid"], workerinput[_COPIES])


def copy_of(config: pytest.Config) -> str:
    """The name of this worker where each one runs every test; else empty."""
    workerinput: dict[str, Any] = getattr(config, "workerinput", {})
    return str(workerinput["workerid"]) if workerinput.get(_COPIES, 1) > 1 else ""


def labs_of_controller(config: pytest.Config) -> LabsOfController | None:
    """The labs of the machine of this process, where its controller has them."""
    if not (is_worker(config) and (address := config.workerinput.get(_LABS))):  # type: ignore[attr-defined]
        return None
    from neops_remote_lab.testing.lab_socket import LabsOfController  # noqa: PLC0415 - only for a run without a server

    return LabsOfController(address)


def note_use(config: pytest.Config) -> None:
    """Tell the controller, if there is one on this machine, that the run is going to have a session."""
    if is_worker(config) and (directory := config.workerinput.get(_DIRECTORY)):  # type: ignore[attr-defined]
        Path(directory, _SESSION).touch()


def announce(config: pytest.Config, client: LabClient) -> None:
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
        self.client: LabClient | None = None

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

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._signals = contextlib.ExitStack()
        self._key: str | None = None
        self._directory: Path | None = None
        self._has_remote = False
        self._running: set[str] = set()
        self._sessions: set[str] = set()
        self._held: dict[str, tuple[str, list[str]]] = {}
        self._labs: LocalLabs | None = None

    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker what it shares with the others, and remember by which key their session can be found."""
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
        """Remember what a worker holds, and take it away from the report, which others may write to a file."""
        session_id = report.__dict__.pop(_SESSION, None)
        references = report.__dict__.pop(_REFERENCES, [])
        if session_id is not None:
            self._sessions.add(session_id)
            self._held[report.__dict__["node"].gateway.id] = session_id, references

    def pytest_testnodedown(self, node: WorkerController) -> None:
        """Clear up after a worker: one that crashed would keep the others from their labs."""
        session_id, references = self._held.pop(node.gateway.id, ("", []))
        output: dict[str, Any] | None = getattr(node, "workeroutput", None)
        if output is None:
            if not node.workerinput[_DIRECTORY]:  # else the next worker that takes the lab finds it written down
                _release(self._config, session_id, references)
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
            self._end()

    def pytest_unconfigure(self) -> None:
        """Remove what the workers shared."""
        self._signals.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _offer_labs(self, address: Path) -> None:
        """Have the labs of this machine, for the workers to use, in a run without a server."""
        if not options.is_given(self._config, "url"):
            return
        from neops_remote_lab.testing.sources import Sources  # noqa: PLC0415 - of no use to runs without a lab host

        if not Sources.of(self._config).is_local():
            return
        from neops_remote_lab.testing.lab_socket import LabSocket  # noqa: PLC0415 - only for a run without a server
        from neops_remote_lab.testing.local_labs import local_labs  # noqa: PLC0415

        with contextlib.suppress(ValueError):  # the workers are going to complain
            self._labs = local_labs(self._config)
            self._signals.callback(LabSocket(self._labs, str(address)).close)

    def _uses_labs(self) -> bool:
        if self._directory is None:
            return False
        return bool(self._sessions) or self._has_remote or self._directory.joinpath(_SESSION).exists()

    def _end(self) -> None:
        sessions, unknown = self._sessions, bool(self._running) and self._uses_labs()
        self._sessions, self._running = set(), set()
        if self._labs is not None:
            self._labs.close()
        elif sessions or unknown:
            _end(self._config, sessions, self._key)


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


def _release(config: pytest.Config, session_id: str, references: list[str]) -> None:
    server = _server(config)
    if server is None or not references:
        return
    import httpx  # noqa: PLC0415 - slow, and rarely needed

    from neops_remote_lab.client.connection import CLOSE_TIMEOUT  # noqa: PLC0415

    with server, contextlib.suppress(httpx.HTTPError):  # the session's end lets go as well
        for reference in references:
            server.release(session_id, reference, server.now() + CLOSE_TIMEOUT)


def _end(config: pytest.Config, sessions: set[str], key: str | None) -> None:
    """End the sessions, or the one behind the key when a worker vanished before it could name it."""
    server = _server(config)
    if server is None or not key:
        return
    with server:
        if not sessions:
            server.end_session_of(key)
        for session_id in sessions:
            server.end_session(session_id)


def _server(config: pytest.Config) -> ServerConnection | None:
    """A connection of the controller; None where the workers cannot have had one either."""
    # slow, and needed in runs with labs alone
    from neops_remote_lab.client import InvalidSetting  # noqa: PLC0415
    from neops_remote_lab.client.connection import ServerConnection  # noqa: PLC0415
    from neops_remote_lab.testing.settings import LabHostSettings  # noqa: PLC0415
    from neops_remote_lab.testing.sources import Sources  # noqa: PLC0415

    try:
        settings = LabHostSettings.read(Sources.of(config))
        return None if settings.is_local else ServerConnection(settings.url, credentials=settings.credentials)
    except (InvalidSetting, RuntimeError):  # the workers have told what is wrong with the address
        return None
