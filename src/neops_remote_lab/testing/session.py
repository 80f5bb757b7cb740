"""Opens and closes the session of a pytest run."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from neops_remote_lab.client.access import Credentials
from neops_remote_lab.client.connection import ServerConnection
from neops_remote_lab.client.exceptions import InvalidSetting, SessionEnded
from neops_remote_lab.client.lab_client import RemoteLabClient
from neops_remote_lab.client.progress import Progress
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.testing import xdist
from neops_remote_lab.testing.failures import LabFailed
from neops_remote_lab.testing.interrupt import LostSession, leave_run
from neops_remote_lab.testing.local_client import LocalLabClient
from neops_remote_lab.testing.local_labs import local_labs
from neops_remote_lab.testing.settings import LabHostSettings
from neops_remote_lab.testing.sources import Sources

LabClient = RemoteLabClient | LocalLabClient
T = TypeVar("T")


def settings_of(session: pytest.Session, url: str | None) -> LabHostSettings:
    """Read the settings of the lab host. An invalid setting ends the run with one usage error.

    Raises:
        RuntimeError: no address is set.
    """
    __tracebackhide__ = True
    try:
        return LabHostSettings.read(replace(Sources.of(session.config), marked_url=url))
    except InvalidSetting as error:
        leave_run(session, str(error), pytest.ExitCode.USAGE_ERROR)
    except RuntimeError as error:
        reason = str(error)
    raise RuntimeError(reason)  # a new exception: with --full-trace, the frames of the other show the environment


class LabSession:
    """The session of a pytest run. The first test that needs it joins the queue; the first that can run waits in it.

    Args:
        session: the pytest session.
        settings: settings of the lab host.
        topologies: the topologies that the run needs.
        url: the address of the lab host, if a marker names it.
        progress: shows what the session waits for.

    Attributes:
        client: the client; None before the join.
        waited: seconds from the join until the session was active; None before that.
    """

    def __init__(
        self,
        session: pytest.Session,
        settings: LabHostSettings,
        topologies: Sequence[Path | TopologyFiles],
        url: str | None,
        progress: Progress,
    ) -> None:
        self._session = session
        self._settings = settings
        self._topologies = topologies
        self._url = url
        self._progress = progress
        self._lost = LostSession(session)
        self._ends = ExitStack()
        self._began = 0.0
        self.client: LabClient | None = None
        self.waited: float | None = None
        self._failure: str | None = None

    def join(self) -> LabClient:
        """Join the queue and let the server check the topologies, once. The session may not be active yet."""
        if self.client is None:
            self.client = self._try(self._new_client)
            xdist.announce(self._session.config, self.client, self._url)
            for topology, message in self.client.rejected.items():
                self._progress.note(f"{topology.name}: {message}")
        return self.client

    def wait(self) -> LabClient:
        """Wait until the session is active, unless netlab rejects all topologies."""
        client = self.join()
        if not client.closed:
            self._try(client.wait_until_active)
            if self.waited is None:
                self.waited = time.monotonic() - self._began
                self._tell_turn(client)
        return client

    def leave(self) -> None:
        """End the session; a worker only leaves it. May be called repeatedly."""
        if self.client is None:
            pass
        elif xdist.is_worker(self._session.config):
            self.client.detach()
        else:
            self.client.close()
        self._ends.close()

    def end_at_once(self) -> None:
        """End the session over a separate connection, because the main thread may be using the other one."""
        self._lost.expect()
        if isinstance(self.client, LocalLabClient):
            self.client.close()
            return
        session_id = self.client.session_id if self.client is not None else ""
        if session_id:
            with ServerConnection(self._settings.url, credentials=self._settings.credentials) as server:
                server.end_session(session_id)

    def _new_client(self) -> LabClient:
        config, settings = self._session.config, self._settings
        self._began = time.monotonic()
        self._ends.enter_context(self._lost.watched())
        xdist.note_use(config, self._url)
        if settings.is_local:
            return LocalLabClient(xdist.labs_of_controller(config) or local_labs(config))
        self._progress.note(f"joining the queue of {settings.shown_url}")
        return RemoteLabClient(
            settings.url,
            settings.request_timeout,
            settings.session_timeout,
            settings.acquisition_timeout,
            purpose=settings.job or f"pytest in {config.rootpath.name}",
            session_key=xdist.session_key(config),
            topologies=self._topologies,
            wait=False,
            on_status=self._progress.queued,
            on_phase=self._progress.phase,
            on_lost=self._lost.stop_run,
            unreachable_timeout=settings.unreachable_timeout,
            on_trouble=self._progress.note,
            **{name: getattr(settings.credentials, name) for name in Credentials.NAMES},
        )

    def _try(self, work: Callable[[], T]) -> T:
        """Run work whose failure counts for the whole run, so that it is not repeated for each test."""
        if self._failure is None:
            try:
                return work()
            except (httpx.HTTPError, TimeoutError) as error:
                self._failure = str(error)
            except pytest.fail.Exception as error:  # pytest-timeout raises it while the session waits
                self._failure = f"the wait for the lab host was interrupted: {error}"
            except SessionEnded as error:
                leave_run(self._session, str(error))
            finally:
                self._progress.idle()
        raise LabFailed(None, self._failure)

    def _tell_turn(self, client: LabClient) -> None:
        if isinstance(client, RemoteLabClient) and not client.closed:
            version = client.server_version()
            self._progress.note(f"it is our turn{f', at a server of version {version}' if version else ''}")
