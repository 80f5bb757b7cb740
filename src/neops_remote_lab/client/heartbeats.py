"""Keeps a session alive with heartbeats from a background thread."""

import logging
import threading
from collections.abc import Callable
from typing import Final

import httpx

from neops_remote_lab.client.answers import detail_of
from neops_remote_lab.client.connection import GONE, ServerConnection, headers_of
from neops_remote_lab.client.session import Session

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

HEARTBEAT_INTERVAL: Final = 5.0
"""Seconds between two heartbeats."""

_log = logging.getLogger(__name__)


class Heartbeats:
    """Sends heartbeats of a session until this process leaves it or the server has ended it.

    Args:
        server: the connection to the server.
        session: the session; it must have joined before `start`.
        interval: seconds between two heartbeats.
        timeout: seconds to wait for a response.
        on_lost: called once, from the thread, with the reason why the server ended the session.
    """

    def __init__(
        self,
        server: ServerConnection,
        session: Session,
        *,
        interval: float,
        timeout: float,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._server = server
        self._session = session
        self._interval = interval
        self._timeout = timeout
        self._on_lost = on_lost
        self._thread = threading.Thread(target=self._run, name="remote-lab-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread. The first heartbeat is sent after one interval."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end of the thread. Returns whether it has ended."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._session.left.wait(self._interval):
            try:
                headers = headers_of(self._session.session_id)
                response = self._server.try_once("POST", "/session/heartbeat", timeout=self._timeout, headers=headers)
            except httpx.TransportError as error:
                _log.debug("heartbeat: %s", error)  # the next heartbeat may succeed
                continue
            if response.status_code in GONE and not self._session.left.is_set():
                self._session.lost_reason = reason = detail_of(response)
                if self._on_lost is not None:
                    self._on_lost(reason)
                return
