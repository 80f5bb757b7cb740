"""Opens WebSockets to the server, the way that its HTTP API is reached, and fails as calls of that API do."""

from dataclasses import dataclass, field
from typing import Final

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidProxyStatus, InvalidStatus, ProxyError

from neops_remote_lab.client.access import Access
from neops_remote_lab.client.answers import CALL_PATH, raise_for_error
from neops_remote_lab.client.connection import headers_of

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids and credentials

MAX_MESSAGE: Final = 1 << 20
"""Longest message that is accepted, in bytes."""
QUEUED_MESSAGES: Final = 4
"""Messages that are read before they are asked for; then the server has to wait."""
WRITE_LIMIT: Final = 1 << 18
"""Bytes that are kept for a server that does not read; then whoever sends has to wait."""


class _Connect(connect):
    """Follows no redirect, so that the credentials go nowhere else."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


@dataclass(frozen=True)
class WebSockets:
    """Opens WebSockets of one session.

    Attributes:
        access: the way to the server.
        session_id: the session.
        seconds: until a WebSocket must be open.
    """

    access: Access
    session_id: str = field(repr=False)
    seconds: float

    async def open(self, path: str) -> ClientConnection:
        """Open a WebSocket; who has it closes it.

        Args:
            path: path below the server's address.

        Raises:
            httpx.HTTPStatusError: the server refused, in its own words.
            httpx.TransportError: the server cannot be reached.
            InvalidSetting: the proxy in between cannot be used.
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
        except ProxyError as error:  # `failures.cannot_heal` looks at the status that it begins with
            status = error.response.status_code if isinstance(error, InvalidProxyStatus) else error
            raise httpx.ProxyError(str(status), request=request) from error
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
