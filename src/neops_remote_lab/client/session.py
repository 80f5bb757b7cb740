"""The session of a client, as its parts and threads share it."""

import threading
from typing import Any

import httpx

from neops_remote_lab.client.answers import detail_of, raise_for_error
from neops_remote_lab.client.connection import GONE, ServerConnection, headers_of
from neops_remote_lab.client.exceptions import SessionClosed, SessionEnded

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids


class Session:
    """A session of one server. Nothing is asked here unless a method says so.

    Args:
        server: the way to the server.

    Attributes:
        session_id: what the server knows the session by; empty until it has joined, and once it is closed.
        lost_reason: why the server ended the session; None as long as it has not.
        left: set once this process leaves the session.
    """

    def __init__(self, server: ServerConnection) -> None:
        self.session_id = ""
        self.lost_reason: str | None = None
        self.left = threading.Event()
        self._server = server

    def call(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        """As `ServerConnection.call`, in the name of the session.

        Args:
            method: HTTP method.
            path: path below the server's address.
            key: the idempotency key of a call that must not count twice.
            options: what else `ServerConnection.call` takes.
        """
        return self._server.call(method, path, headers=headers_of(self.session_id, key), **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `call`, for answers that say 404 both without a lab and without a session.

        Raises:
            SessionEnded: the server ended the session.
            httpx.HTTPStatusError: the server refused.
            httpx.TransportError: the server cannot be reached.
        """
        response = self.call(method, path, **options)
        if response.status_code in GONE:
            self.require_live()
        raise_for_error(response)
        return response

    def require_open(self) -> None:
        """Raise SessionEnded or SessionClosed for a session that is known to be over."""
        if self.lost_reason is not None:
            raise SessionEnded(self.lost_reason)
        if self.left.is_set():
            raise SessionClosed

    def require_live(self) -> None:
        """Ask the server, and raise SessionEnded where the session is over."""
        self.raise_if_gone(self.call("GET", f"/session/{self.session_id}"))

    def raise_if_gone(self, response: httpx.Response) -> None:
        """Raise SessionEnded where a response says that there is no such session."""
        if response.status_code in GONE:
            self.lost_reason = self.lost_reason or detail_of(response)
            raise SessionEnded(self.lost_reason)
