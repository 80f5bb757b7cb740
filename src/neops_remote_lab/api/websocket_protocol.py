"""WebSockets by uvicorn and the library `websockets`, which know all of the protocol; here are this server's limits."""

import asyncio
import logging
from typing import Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from neops_remote_lab.api.send_timeout import SendTimeout

LOGGER: Final = "uvicorn.error.websocket"
"""Says that a WebSocket was accepted or refused, as `uvicorn.access` does of other requests."""
PING_INTERVAL: Final = 20.0
"""Most seconds between two pings: proxies close what is silent for long."""


class WebSocketProtocol(SendTimeout, WebSocketsSansIOProtocol):
    """One connection. A client that answers no ping is gone, and one that reads nothing for long is as good as gone."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.logger = self.conn.logger = logging.getLogger(LOGGER)
        self._early = b""
        """What a client has sent before it could know that its request is accepted."""

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self.handshake_initiated and not self.handshake_complete:  # uvicorn would take it for a broken frame
            self._early += data
            self.transport.pause_reading()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))  # uvicorn would leave that unsent
            self.transport.close()

    async def send(self, message: Any) -> None:
        """Send what the application says."""
        await super().send(message)
        if message["type"] == "websocket.accept" and self._early and not self.transport.is_closing():
            early, self._early = self._early, b""
            self.transport.resume_reading()
            self.data_received(early)
        elif message["type"] == "websocket.http.response.body":  # uvicorn would take a refusal for no response
            self.handshake_complete = not message.get("more_body", False)

    def keepalive_timeout(self) -> None:
        """No answer to a ping has been read in time: because nothing is read, or because there is none."""
        if self.read_paused and self.ping_timeout is not None:  # the device does not read, so neither do we
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            super().keepalive_timeout()


def protocol(send_timeout: float) -> type[asyncio.Protocol]:
    """The protocol of a server's WebSockets.

    Args:
        send_timeout: seconds for which a client may leave unread what was sent to it.
    """
    made = type(WebSocketProtocol.__name__, (WebSocketProtocol,), {"send_timeout": send_timeout})
    return cast("type[asyncio.Protocol]", made)
