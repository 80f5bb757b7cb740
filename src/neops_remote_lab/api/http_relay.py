"""Relays a request to another server of the queue, and its response."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Final

import httpcore
from starlette import status
from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from neops_remote_lab.api import hops
from neops_remote_lab.api.duplex import DuplexBackend
from neops_remote_lab.api.requests import refuse_while_draining, services_of
from neops_remote_lab.api.settings import HttpSettings
from neops_remote_lab.core.codes import ProxyOutcome

logger = logging.getLogger(__name__)

EVENT_STREAM: Final = b"text/event-stream"
_NOT_REACHED: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.UnsupportedProtocol)
_BROKEN: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class HttpRelay:
    """Passes requests on to other servers."""

    def __init__(self, settings: HttpSettings, trust: ssl.SSLContext) -> None:
        """`trust` verifies the certificates of other servers."""
        # Not a client of httpx, which interprets cookies and redirects, and changes paths.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust,
            max_connections=None,
            keepalive_expiry=settings.keep_alive / 2,  # the other server must not close one while it is reused
            socket_options=hops.KEEP_ALIVE,
            network_backend=DuplexBackend(),
        )
        self._timeout = {"connect": settings.proxy_connect_timeout, "write": settings.send_timeout}

    async def relay(self, request: Request, send: Send, hop: hops.Hop) -> ProxyOutcome:
        """Pass a request on, and its response back.

        A response that has begun is complete even if this server shuts down, or if the session ends.

        Raises:
            OwnerFails: there is no response.
            ClientDisconnect: the client has disconnected before the response.
        """
        body = _Body(request)
        left = asyncio.create_task(body.client_left())
        try:
            async with AsyncExitStack() as ends:
                opening = self._open(request, body, hop.address, ends)
                response = await hops.unless(opening, left, hop.drained, hop.lost, hop.moved)
                if response is None:
                    hop.require_owner()
                    refuse_while_draining(services_of(request))
                    raise ClientDisconnect
                headers = hops.of_response(response.headers)
                if not body.is_read.is_set():  # the rest of a refused upload
                    headers.append((b"connection", b"close"))
                    body.is_read.set()
                endless = dict(headers).get(b"content-type", b"").startswith(EVENT_STREAM)
                sending = _send(response, headers, send)
                outcome = await hops.unless(sending, left, hop.lost, *([hop.drained] if endless else []))
                return outcome or (ProxyOutcome.SILENT if hop.lost.done() else ProxyOutcome.ABANDONED)
        finally:
            left.cancel()

    async def answers(self, address: str) -> bool:
        """Whether a server answers within the time that a connection may take."""
        try:
            async with asyncio.timeout(self._timeout["connect"]):
                response = await self._pool.request(b"GET", _url(address, b"/healthz"))
        except (TimeoutError, *_NOT_REACHED, *_BROKEN):
            return False
        return response.status == status.HTTP_204_NO_CONTENT

    async def close(self) -> None:
        """Close the idle connections."""
        await self._pool.aclose()

    async def _open(self, request: Request, body: "_Body", address: str, ends: AsyncExitStack) -> httpcore.Response:
        exchange = self._pool.stream(
            request.method,
            _url(address, hops.target(request.scope)),
            headers=hops.of_request(request.scope["headers"]),
            content=aiter(body) if body.expected else None,
            extensions={"timeout": self._timeout},
        )
        try:
            return await ends.enter_async_context(exchange)
        except _NOT_REACHED as error:
            raise hops.OwnerFails("cannot be reached", ProxyOutcome.UNREACHABLE) from error
        except _BROKEN as error:
            problem = "broke off the connection, after which the call may still take effect"
            raise hops.OwnerFails(problem, ProxyOutcome.BROKEN) from error


class _Body:
    """The body of a request, and the disconnect of the client that may follow it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.expected = "Transfer-Encoding" in request.headers or request.headers.get("Content-Length", "0") != "0"
        self.is_read = asyncio.Event()
        """Set when nothing reads the body any more."""
        if not self.expected:
            self.is_read.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._request.stream():
            if chunk:
                yield chunk
        self.is_read.set()

    async def client_left(self) -> None:
        """Wait until the client disconnects, after its body was read."""
        await self.is_read.wait()
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def _url(address: str, target: bytes) -> httpcore.URL:
    base = httpcore.URL(address)
    return httpcore.URL(scheme=base.scheme, host=base.host, port=base.port, target=base.target.rstrip(b"/") + target)


async def _send(response: httpcore.Response, headers: hops.RawHeaders, send: Send) -> ProxyOutcome:
    """Send a response to the client. If it breaks off, it is left incomplete: uvicorn then closes the connection."""
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    try:
        async for chunk in response.aiter_stream():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except _BROKEN as error:
        logger.warning("a response of another server broke off: %r", error)
        return ProxyOutcome.BROKEN
    await send({"type": "http.response.body", "body": b""})
    return ProxyOutcome.ANSWERED
