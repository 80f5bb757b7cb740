"""Waits in the queue for the turn of a session."""

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

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids

LONGEST_POLL: Final = 25.0
"""Seconds for which the server is asked to hold its answer; many proxies cut a connection that is silent for 30."""
POLL_INTERVAL: Final = 1.0
"""Least seconds from one poll to the next, for servers that do not hold their answer."""
SHORT_POLL: Final = 1
"""Seconds for which the server is asked to hold its answer while something else is waited for as well."""


class QueuePosition:
    """The position of a session in the queue, as long polls tell it.

    Args:
        server: the way to the server.
        session: the session, which has joined before the first poll.
        timeout: seconds to wait for the turn, from now on.
        request_timeout: seconds for which one short call may wait for its answer.
        on_progress: called with the position and what it waits for whenever the position changes.
        on_status: called with each answer.

    Attributes:
        until: when `timeout` is over, on the server connection's clock.
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
        """Return when the session is active.

        Raises:
            TimeoutError: it was not in time.
            SessionEnded: the server ended the session.
            httpx.HTTPError: the server refused, or cannot be reached.
        """
        held = 0  # the first answer comes at once, to tell the user what there is to wait for
        while True:
            began, known = self._server.now(), self._position
            status = self.poll(held)
            if status.status is SessionState.ACTIVE:
                return
            self._keep_pace(began, status, moved=known != status.position)
            held = self._longest_hold()

    def watch(self, done: threading.Event) -> None:
        """Return when the event is set, the session is active, or the time is over; raises what `poll` does."""
        pace = 0.0
        while not done.wait(pace):
            began = self._server.now()
            if self.poll(SHORT_POLL).status is SessionState.ACTIVE or began >= self.until:
                return
            pace = max(began + POLL_INTERVAL - self._server.now(), 0)  # an older server does not hold its answer

    def poll(self, held: int = 0) -> SessionStatusResponseDto:
        """Ask once, and have the answer held for so many seconds at most; raises what `wait_for_turn` does."""
        # a position that changed since the last answer is told at once
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
        if not moved and next_poll > now:  # an older server, or one that is about to restart, answers at once
            self._server.pause(min(next_poll, self.until) - now)

    def _longest_hold(self) -> int:
        left = self.until - self._server.now()
        return max(math.floor(min(LONGEST_POLL, 0.8 * self._request_timeout, left)), 0)

    def _too_late(self, reason: str) -> TimeoutError:
        return TimeoutError(f"not active within {self._timeout:g} s: {reason}")
