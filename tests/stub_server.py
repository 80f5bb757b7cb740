"""A lab server with stub WebSockets."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus

from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

Handler = Callable[[ServerConnection], Awaitable[None]]


class StubServer:
    """A lab server in a thread, whose WebSockets have the handler that the test chooses."""

    def __init__(self, tls: ssl.SSLContext | None = None, subprotocols: Sequence[str] = ()) -> None:
        self.handler: Handler = self.echo
        self.refusal: tuple[HTTPStatus, str] | None = None
        self.requests: list[Request] = []
        self.received = 0
        self._resumed = asyncio.Event()
        self._tls = tls
        self._subprotocols = [Subprotocol(name) for name in subprotocols]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    def close(self) -> None:
        self.resume()
        self._server.close()
        asyncio.run_coroutine_threadsafe(self._server.wait_closed(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def read_later(self, connection: ServerConnection) -> None:
        """Read nothing until `resume` is called, then everything. `received` counts the bytes."""
        await self._resumed.wait()
        async for message in connection:
            self.received += len(message)

    def resume(self) -> None:
        """Let `read_later` read."""
        self._loop.call_soon_threadsafe(self._resumed.set)

    async def send_forever(self, connection: ServerConnection) -> None:
        """Send as fast as the receiver reads. `received` counts the bytes sent."""
        while True:
            await connection.send(bytes(1 << 16))
            self.received += 1 << 16

    async def _start(self) -> WebSocketServer:
        return await serve(
            self._handle,
            "127.0.0.1",
            0,
            ssl=self._tls,
            process_request=self._check,
            max_queue=1,
            subprotocols=self._subprotocols or None,
        )

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/lab/devices":
            return self._json(connection, HTTPStatus.OK, [{"name": "r1", "raw": {}}])
        self.requests.append(request)
        if self.refusal is None:
            return None
        return self._json(connection, self.refusal[0], {"detail": self.refusal[1]})

    @staticmethod
    def _json(connection: ServerConnection, status: HTTPStatus, content: object) -> Response:
        response = connection.respond(status, json.dumps(content))
        del response.headers["Content-Type"]  # assignments add a header
        response.headers["Content-Type"] = "application/json"
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        await self.handler(connection)
