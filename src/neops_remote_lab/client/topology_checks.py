"""Lets the server check topologies while their session waits in the queue."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx

from neops_remote_lab.client.answers import detail_of
from neops_remote_lab.client.session import Session
from neops_remote_lab.client.uploads import upload_of
from neops_remote_lab.core.topology_files import TopologyFiles

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

NO_MORE_CHECKS: Final = frozenset(
    {
        httpx.codes.NOT_FOUND,
        httpx.codes.METHOD_NOT_ALLOWED,
        httpx.codes.NOT_IMPLEMENTED,
        httpx.codes.CONFLICT,
        httpx.codes.GONE,
    }
)
"""Statuses after which further checks are useless: an older server, or a session that is active or over."""


class TopologyChecks:
    """Runs the checks of one session in a background thread, so that a slow check does not delay the session.

    The checks are optional: errors are ignored here and show when the lab is acquired.

    Args:
        session: the session.
        topologies: the topologies, checked one after the other.
        until: time on the connection's clock after which calls are not repeated.

    Attributes:
        rejected: netlab's message for each rejected topology.
        finished: set when all checks are done.
    """

    def __init__(self, session: Session, topologies: Sequence[Path | TopologyFiles], until: float) -> None:
        self._session = session
        self._topologies = topologies
        self._until = until
        self._thread = threading.Thread(target=self._run, name="remote-lab-checks", daemon=True)
        self.rejected: dict[Path | TopologyFiles, str] = {}
        self.finished = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for a running check."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            for topology in self._topologies:
                if self._session.left.is_set() or not self._check(topology):
                    return
        finally:
            self.finished.set()

    def _check(self, topology: Path | TopologyFiles) -> bool:
        """Let the server check a topology. Returns whether further checks are useful."""
        try:
            files = topology if isinstance(topology, TopologyFiles) else TopologyFiles(topology)
            with upload_of(files) as upload:
                response = self._session.call(
                    "POST", "/topology/check", until=self._until, slow=True, quiet=True, **upload
                )
        except (httpx.TransportError, OSError, ValueError):
            return True
        except RuntimeError:  # httpx: the connection was closed meanwhile
            if not self._session.left.is_set():
                raise
            return False
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            self.rejected[topology] = detail_of(response)
        return response.status_code not in NO_MORE_CHECKS
