"""Relays a WebSocket to another server of the queue."""

import asyncio
import ssl
from typing import Final, NamedTuple

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from neops_remote_lab.api import hops
from neops_remote_lab.api.device_connections import CLOSE_TIMEOUT, Close, CloseCode, close
from neops_remote_lab.api.requests import refuse_while_draining, services_of
from neops_remote_lab.api.responses import NEVER_SNIFFED
from neops_remote_lab.api.settings import HttpSettings
from neops_remote_lab.core.codes import ProxyOutcome

QUEUED_MESSAGES: Final = 1
"""Number of messages of the other server that are buffered before it has to wait."""
_NEVER_SENT: Final = {1005: CloseCode.NORMAL, 1006: CloseCode.GOING_AWAY, 1015: CloseCode.GOING_AWAY}
"""Close codes that only report how a connection has ended, and what is sent in their place."""


class WebSocketRelay:
    """Passes WebSockets on to other servers."""

    def __init__(self, settings: HttpSettings, trust: ssl.SSLContext) -> None:
        """`trust` verifies the certificates of other servers."""
        self._settings = settings
        self._trust = trust

    async def relay(self, websocket: WebSocket, hop: hops.Hop) -> ProxyOutcome:
        """Open the WebSocket on the other server, and relay until either side ends, or the hop does.

        Raises:
            OwnerFails: the WebSocket cannot be opened.
        """
        await websocket.receive()  # that it is to be accepted
        left = asyncio.create_task(websocket.receive())  # the next event before that can only be a disconnect
        try:
            owner = await hops.unless(self._open(websocket, hop.address), left, hop.drained, hop.lost, hop.moved)
        except InvalidStatus as refused:
            await websocket.send_denial_response(_denial(refused))
            return ProxyOutcome.ANSWERED
        finally:
            left.cancel()
            await asyncio.wait({left})
        if owner is not None:
            return await _relay(websocket, owner, hop)
        hop.require_owner()
        refuse_while_draining(services_of(websocket))
        return ProxyOutcome.ABANDONED

    async def _open(self, websocket: WebSocket, address: str) -> ClientConnection:
        url = "ws" + address.rstrip("/").removeprefix("http") + hops.target(websocket.scope).decode()
        headers = hops.of_handshake(websocket.scope["headers"])
        try:
            async with asyncio.timeout(self._settings.proxy_connect_timeout) as limit:

                class Connection(ClientConnection):
                    """Ends the timeout as soon as the server has accepted the connection: a device may take longer."""

                    def connection_made(self, transport: asyncio.BaseTransport) -> None:
                        super().connection_made(transport)
                        limit.reschedule(None)
                        for option in hops.KEEP_ALIVE:
                            transport.get_extra_info("socket").setsockopt(*option)

                return await _Connect(
                    url,
                    create_connection=Connection,
                    ssl=self._trust if url.startswith("wss:") else None,
                    proxy=None,
                    additional_headers=[(name.decode(), value.decode("latin-1")) for name, value in headers],
                    user_agent_header=None,
                    subprotocols=[Subprotocol(name) for name in websocket.scope["subprotocols"]] or None,
                    compression=None,
                    open_timeout=None,
                    ping_interval=None,  # the pong may wait behind data that a device does not take
                    close_timeout=CLOSE_TIMEOUT,
                    max_size=None,  # the other server limits what it sends
                    max_queue=QUEUED_MESSAGES,
                )
        except InvalidStatus:
            raise
        except (OSError, EOFError, InvalidHandshake, InvalidURI) as error:  # a TimeoutError is an OSError
            raise hops.OwnerFails("cannot be reached", ProxyOutcome.UNREACHABLE) from error


class _Connect(connect):
    """A connection that follows no redirects."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


def _denial(refused: InvalidStatus) -> Response:
    answer = refused.response
    headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers.raw_items()]
    response = Response(bytes(answer.body or b""), answer.status_code)
    response.raw_headers = hops.of_response(headers)
    response.headers.append(*NEVER_SNIFFED)  # uvicorn adds it to other responses only
    return response


class _End(NamedTuple):
    """The end of a relay."""

    outcome: ProxyOutcome
    close: Close | None
    """How the client's WebSocket is closed; None if the client has left."""


_DRAINED: Final = _End(ProxyOutcome.ABANDONED, Close(CloseCode.RESTART, "the server is shutting down"))
_LOST: Final = _End(
    ProxyOutcome.SILENT, Close(CloseCode.BAD_GATEWAY, "the server of the session's host shows no sign of life")
)
_BROKEN: Final = _End(
    ProxyOutcome.BROKEN, Close(CloseCode.BAD_GATEWAY, "the connection to the server of the session's host broke")
)


async def _relay(websocket: WebSocket, owner: ClientConnection, hop: hops.Hop) -> ProxyOutcome:
    try:
        await websocket.accept(owner.subprotocol)
        inward = asyncio.create_task(_to_owner(websocket, owner))
        try:
            end = await hops.unless(_to_client(websocket, owner), hop.drained, hop.lost)
        finally:
            inward.cancel()
            await asyncio.wait({inward})
    finally:
        await owner.close(CloseCode.GOING_AWAY)
    end = end or (_LOST if hop.lost.done() else _DRAINED)
    if end.close is not None:
        await close(websocket, end.close)
    return end.outcome


async def _to_owner(websocket: WebSocket, owner: ClientConnection) -> None:
    """Relay the client's messages and its close code. Whenever this ends, the other server's messages end."""
    try:
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            data = message.get("bytes")
            await owner.send(message["text"] if data is None else data)
    except ConnectionClosed:
        return
    await owner.close(_sent(message["code"]), message.get("reason") or "")


async def _to_client(websocket: WebSocket, owner: ClientConnection) -> _End:
    """Relay the other server's messages, until either side ends."""
    try:
        while True:
            message = await owner.recv()
            await (websocket.send_text(message) if isinstance(message, str) else websocket.send_bytes(message))
    except WebSocketDisconnect:
        return _End(ProxyOutcome.ABANDONED, None)
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            return _BROKEN
        return _End(ProxyOutcome.ANSWERED, Close(_sent(closed.rcvd.code), closed.rcvd.reason))


def _sent(code: int) -> int:
    return _NEVER_SENT.get(code, code)
