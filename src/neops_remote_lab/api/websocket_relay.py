"""Relays a WebSocket to another server of the queue."""

import asyncio
import ssl
from typing import Any, Final

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

    async def relay(self, websocket: WebSocket, address: str, drained: asyncio.Task[Any]) -> None:
        """Open the WebSocket on the other server, and relay until either side ends.

        Args:
            address: base URL of the other server.
            drained: ends when this server shuts down, which ends the relay.

        Raises:
            OwnerFails: the WebSocket cannot be opened.
        """
        await websocket.receive()  # that it is to be accepted
        left = asyncio.create_task(websocket.receive())  # the next event before that can only be a disconnect
        try:
            owner = await hops.unless(self._open(websocket, address), left, drained)
        except InvalidStatus as refused:
            await websocket.send_denial_response(_denial(refused))
            return
        finally:
            left.cancel()
            await asyncio.wait({left})
        if owner is not None:
            await _relay(websocket, owner, drained)
        else:
            refuse_while_draining(services_of(websocket))

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
            raise hops.OwnerFails("cannot be reached") from error


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


async def _relay(websocket: WebSocket, owner: ClientConnection, drained: asyncio.Task[Any]) -> None:
    try:
        await websocket.accept(owner.subprotocol)
        inward = asyncio.create_task(_to_owner(websocket, owner))
        try:
            ending = await hops.unless(_to_client(websocket, owner), drained)
        finally:
            inward.cancel()
            await asyncio.wait({inward})
    finally:
        await owner.close(CloseCode.GOING_AWAY)
    if drained.done():
        ending = Close(CloseCode.RESTART, "the server is shutting down")
    if ending is not None:
        await close(websocket, ending)


async def _to_owner(websocket: WebSocket, owner: ClientConnection) -> None:
    """Relay the client's messages and its close code. Whenever this ends, the other server's messages end."""
    try:
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            data = message.get("bytes")
            await owner.send(message["text"] if data is None else data)
    except ConnectionClosed:
        return
    await owner.close(_sent(message["code"]), message.get("reason") or "")


async def _to_client(websocket: WebSocket, owner: ClientConnection) -> Close | None:
    """Relay the other server's messages. Returns how to close the client's WebSocket; None if the client has left."""
    try:
        while True:
            message = await owner.recv()
            await (websocket.send_text(message) if isinstance(message, str) else websocket.send_bytes(message))
    except WebSocketDisconnect:
        return None
    except ConnectionClosed as closed:
        if closed.rcvd is None:
            return Close(CloseCode.BAD_GATEWAY, "the connection to the server of the session's host broke")
        return Close(_sent(closed.rcvd.code), closed.rcvd.reason)


def _sent(code: int) -> int:
    return _NEVER_SENT.get(code, code)
