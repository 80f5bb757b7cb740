"""uvicorn's WebSocket protocol, which uses the library `websockets`, with the limits of this server."""

import asyncio
import logging
from typing import Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from neops_remote_lab.api.send_timeout import SendTimeout

LOGGER: Final = "uvicorn.error.websocket"
"""Logs accepted and refused WebSockets, as `uvicorn.access` logs other requests."""
PING_INTERVAL: Final = 20.0
"""Maximum seconds between two pings, because proxies close idle connections."""


class WebSocketProtocol(SendTimeout, WebSocketsSansIOProtocol):
    """One connection. A client that does not answer pings, or does not read for too long, is disconnected."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = self.conn.logger = logging.getLogger(LOGGER)
        self._early = b""
        """Data that the client sent before the handshake was complete."""

    def data_received(self, data: bytes) -> None:
        """Process data; data that arrives before the handshake is complete is buffered."""
        if self.handshake_initiated and not self.handshake_complete:  # uvicorn would treat it as an invalid frame
            self._early += data
            self.transport.pause_reading()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))  # uvicorn does not send it
            self.transport.close()

    async def send(self, message: Any) -> None:
        """Send a message of the application, and process buffered data after the handshake."""
        await super().send(message)
        if message["type"] == "websocket.accept" and self._early and not self.transport.is_closing():
            early, self._early = self._early, b""
            self.transport.resume_reading()
            self.data_received(early)
        elif message["type"] == "websocket.http.response.body":  # uvicorn does not treat a refusal as a response
            self.handshake_complete = not message.get("more_body", False)

    def keepalive_timeout(self) -> None:
        """Handle a missing pong. While reading is paused the pong cannot be read, so wait longer."""
        if self.read_paused and self.ping_timeout is not None:  # the device does not read, so neither does the server
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()


def protocol(send_timeout: float) -> type[asyncio.Protocol]:
    """The protocol class for WebSockets.

    Args:
        send_timeout: seconds after which a client that does not read is disconnected.
    """
    subclass = type(WebSocketProtocol.__name__, (WebSocketProtocol,), {"send_timeout": send_timeout})
    return cast("type[asyncio.Protocol]", subclass)
