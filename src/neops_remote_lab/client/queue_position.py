"""Waits until a session becomes active, with long polls."""

import math
import threading
from collections.abc import Callable
from typing import Final

import httpx

from neops_remote_lab.client.answers import detail_of, parsed, raise_for_error
from neops_remote_lab.client.connection import RESTARTING, ServerConnection
from neops_remote_lab.client.session import Session
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.models.session import SessionStatusResponseDto

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

LONGEST_POLL: Final = 25.0
"""Maximum duration of a long poll, in seconds: many proxies close a connection that is idle for 30."""
POLL_INTERVAL: Final = 1.0
"""Minimum seconds between two polls, for servers without long polls."""
SHORT_POLL: Final = 1
"""Duration of a long poll, in seconds, while waiting for something else too."""


class QueuePosition:
    """Follows the position of a session in the queue.

    Args:
        server: the connection to the server.
        session: the session; it must have joined before the first poll.
        timeout: seconds from now on until the session must be active.
        request_timeout: seconds to wait for the response to a short call.
        on_progress: called with the position and what it waits for, whenever the position changes.
        on_status: called with each response.

    Attributes:
        until: the end of `timeout`, on the connection's clock.
    """

    def __init__(
        self,
        server: ServerConnection,
        session: Session,
        *,
        timeout: float,
        request_timeout: float,
        on_progress: Callable[[int, str | None], None] | None = None,
        on_status: Callable[[SessionStatusResponseDto], None] | None = None,
    ) -> None:
        self._server = server
        self._session = session
        self._timeout = timeout
        self._request_timeout = request_timeout
        self._on_progress = on_progress
        self._on_status = on_status
        self._position = 0
        self.until = server.now() + timeout

    def wait_for_turn(self) -> None:
        """Wait until the session is active.

        Raises:
            TimeoutError: the session did not become active in time.
            SessionEnded: the server ended the session.
            httpx.HTTPError: the server refused, or cannot be reached.
        """
        held = 0  # poll once without waiting, to show the user the position
        while True:
            began, known = self._server.now(), self._position
            status = self.poll(held)
            if status.status is SessionState.ACTIVE:
                return
            self._keep_pace(began, status, moved=known != status.position)
            held = self._longest_hold()

    def watch(self, done: threading.Event) -> None:
        """Poll until the event is set, the session is active, or the time is up. Raises as `poll`."""
        pace = 0.0
        while not done.wait(pace):
            began = self._server.now()
            if self.poll(SHORT_POLL).status is SessionState.ACTIVE or began >= self.until:
                return
            pace = max(began + POLL_INTERVAL - self._server.now(), 0)  # older servers have no long polls

    def poll(self, held: int = 0) -> SessionStatusResponseDto:
        """Poll once, for at most `held` seconds. Raises as `wait_for_turn`."""
        # With `position`, the server answers at once if the position has changed since the last poll.
        params = {"wait": held, "position": self._position} if held and self._position else {"wait": held}
        try:
            path = f"/session/{self._session.session_id}"
            response = self._session.call("GET", path, until=self.until, held=held, params=params)
        except httpx.TransportError as error:
            if self._server.now() < self.until:
                raise
            raise self._too_late(str(error)) from error
        if response.status_code in RESTARTING and self._server.now() >= self.until:
            raise self._too_late(detail_of(response))
        self._session.raise_if_gone(response)
        raise_for_error(response)
        status = parsed(response, SessionStatusResponseDto)
        self._report(status)
        return status

    def _report(self, status: SessionStatusResponseDto) -> None:
        if self._on_status is not None:
            self._on_status(status)
        if status.position == self._position:
            return
        self._position = status.position
        if self._on_progress is not None:
            self._on_progress(status.position, status.waiting_for)

    def _keep_pace(self, began: float, status: SessionStatusResponseDto, *, moved: bool) -> None:
        now = self._server.now()
        if now >= self.until:
            behind = f" ({status.waiting_for})" if status.waiting_for else ""
            raise self._too_late(f"position {status.position} in the queue{behind}")
        next_poll = began + POLL_INTERVAL
        if not moved and next_poll > now:  # older servers and draining ones answer at once
            self._server.pause(min(next_poll, self.until) - now)

    def _longest_hold(self) -> int:
        left = self.until - self._server.now()
        return max(math.floor(min(LONGEST_POLL, 0.8 * self._request_timeout, left)), 0)

    def _too_late(self, reason: str) -> TimeoutError:
        return TimeoutError(f"not active within {self._timeout:g} s: {reason}")
