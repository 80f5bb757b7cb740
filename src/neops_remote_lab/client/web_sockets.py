"""Opens WebSockets to the server, with the same settings and the same exceptions as calls of the HTTP API."""

from dataclasses import dataclass, field
from typing import Final

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosedError,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxyStatus,
    InvalidStatus,
    ProxyError,
)

from neops_remote_lab.client.access import Access
from neops_remote_lab.client.answers import CALL_PATH, raise_for_error
from neops_remote_lab.client.connection import headers_of
from neops_remote_lab.core.text import one_line

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids and credentials

MAX_MESSAGE: Final = 1 << 20
"""Maximum size of a received message, in bytes."""
QUEUED_MESSAGES: Final = 4
"""Number of received messages that are buffered before the server has to wait."""
WRITE_LIMIT: Final = 1 << 18
"""Number of bytes that are buffered for sending before the sender has to wait."""


class _Connect(connect):
    """A connection that follows no redirects, which could leak the credentials."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


@dataclass(frozen=True)
class WebSockets:
    """Opens WebSockets of one session.

    Attributes:
        access: address, credentials, proxy and certificates.
        session_id: the session.
        seconds: timeout for opening a WebSocket.
    """

    access: Access
    session_id: str = field(repr=False)
    seconds: float

    async def open(self, path: str) -> ClientConnection:
        """Open a WebSocket, which the caller must close.

        Args:
            path: path below the server's address.

        Raises:
            httpx.HTTPStatusError: the server refused; the message is the server's.
            httpx.TransportError: the server cannot be reached.
            InvalidSetting: the proxy cannot be used.
        """
        options = self.access.web_socket(path, headers_of(self.session_id))
        request = httpx.Request("GET", self.access.url + path, extensions={CALL_PATH: path})
        try:
            return await _Connect(
                **options,
                compression=None,
                open_timeout=self.seconds,
                max_size=MAX_MESSAGE,
                max_queue=QUEUED_MESSAGES,
                write_limit=WRITE_LIMIT,
            )
        except InvalidStatus as error:
            raise _refused(error, request) from None
        except ProxyError as error:  # `failures.cannot_heal` expects the status at the beginning of the message
            status = error.response.status_code if isinstance(error, InvalidProxyStatus) else error
            raise httpx.ProxyError(str(status), request=request) from error
        except InvalidMessage as error:
            raise httpx.RemoteProtocolError("the connection was closed without a response", request=request) from error
        except InvalidHandshake as error:
            raise httpx.RemoteProtocolError(str(error), request=request) from error
        except TimeoutError as error:
            raise httpx.ConnectTimeout("no connection in time", request=request) from error
        except (OSError, EOFError) as error:
            raise httpx.ConnectError(str(error), request=request) from error


def _refused(error: InvalidStatus, request: httpx.Request) -> httpx.HTTPError:
    answer = error.response
    headers, content = list(answer.headers.raw_items()), bytes(answer.body or b"")
    response = httpx.Response(answer.status_code, headers=headers, content=content, request=request)
    try:
        raise_for_error(response)
    except httpx.HTTPStatusError as refused:
        return refused
    return httpx.RemoteProtocolError(f"{answer.status_code} instead of a WebSocket", request=request)


def reason_of_close(error: ConnectionClosedError) -> str:
    """A one-line message that says why a WebSocket was closed."""
    received = error.rcvd
    return one_line(received.reason or str(received)) if received else "the connection to the server broke off"
