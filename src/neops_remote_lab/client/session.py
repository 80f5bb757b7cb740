"""A session, shared by the parts and threads of a client."""

import threading
from typing import Any

import httpx

from neops_remote_lab.client.answers import detail_of, raise_for_error
from neops_remote_lab.client.connection import GONE, ServerConnection, headers_of
from neops_remote_lab.client.exceptions import SessionClosed, SessionEnded

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids


class Session:
    """A session of one server.

    Args:
        server: the connection to the server.

    Attributes:
        session_id: the id of the session; empty before the join and after the close.
        lost_reason: why the server ended the session; None if it has not.
        left: set when this process leaves the session.
    """

    def __init__(self, server: ServerConnection) -> None:
        self.session_id = ""
        self.lost_reason: str | None = None
        self.left = threading.Event()
        self._server = server

    def call(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        """As `ServerConnection.call`, with the header of the session.

        Args:
            method: HTTP method.
            path: path below the server's address.
            key: idempotency key.
            options: further arguments for `ServerConnection.call`.
        """
        return self._server.call(method, path, headers=headers_of(self.session_id, key), **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As `call`, but raises on errors. A 404 can mean no lab or no session; this method finds out.

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
        """Raise SessionEnded or SessionClosed if the session is known to be over. Sends no request."""
        if self.lost_reason is not None:
            raise SessionEnded(self.lost_reason)
        if self.left.is_set():
            raise SessionClosed

    def require_live(self) -> None:
        """Ask the server whether the session is live, and raise SessionEnded if it is not."""
        self.raise_if_gone(self.call("GET", f"/session/{self.session_id}"))

    def raise_if_gone(self, response: httpx.Response) -> None:
        """Raise SessionEnded if a response says that the session does not exist."""
        if response.status_code in GONE:
            self.lost_reason = self.lost_reason or detail_of(response)
            raise SessionEnded(self.lost_reason)
