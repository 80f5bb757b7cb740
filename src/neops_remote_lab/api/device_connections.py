"""Relays data between a WebSocket and a stream to a device, with flow control.

In each direction, a message is sent before the next one is read, so a side that does not read stops the other side.
"""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from neops_remote_lab.labs.accesses import Cut
from neops_remote_lab.labs.channels import Channel

CLOSE_TIMEOUT: Final = 1.0
"""Seconds to wait for the close message to be sent to a client that may not be reading."""


class CloseCode(IntEnum):
    """Why the server closes a WebSocket."""

    NORMAL = 1000
    """The stream has ended."""
    GOING_AWAY = 1001
    """The client has disconnected. Sent to the server to which the WebSocket was passed on."""
    UNSUPPORTED = 1003
    """The client sent a message of an unsupported kind."""
    RESTART = 1012
    """The server is shutting down."""
    TRY_LATER = 1013
    """There are too many connections."""
    BAD_GATEWAY = 1014
    """The connection to the device broke."""
    IDLE = 4408
    """No data was sent in either direction for too long."""
    LAB_ENDED = 4410
    """The lab or its session has ended."""


class Close(NamedTuple):
    """Close code and reason of a WebSocket."""

    code: int
    reason: str = ""


_CUT: Final = {
    Cut.LAB_ENDED: Close(CloseCode.LAB_ENDED, "the lab or its session has ended"),
    Cut.SERVER_ENDS: Close(CloseCode.RESTART, "the server is shutting down"),
}


async def join(
    websocket: WebSocket,
    channel: Channel,
    *,
    cut: "asyncio.Future[Cut]",
    idle_timeout: float,
    on_text: Callable[[str], Close | None] = lambda _: Close(CloseCode.UNSUPPORTED, "messages must be binary"),
) -> None:
    """Accept a WebSocket, relay until either side ends, and close the WebSocket and the channel.

    Args:
        cut: ends the connection when it is done.
        idle_timeout: seconds without data in either direction after which the connection is closed.
        on_text: handles a text message. Returns how to close the WebSocket if the message is invalid.
    """
    try:
        await websocket.accept()
        ending = await _Joint(websocket, channel, on_text).serve(cut, idle_timeout)
    finally:
        last_words = await channel.close()
    if ending:
        await close(websocket, ending, last_words)


async def refuse(websocket: WebSocket, why: Close) -> None:
    """Accept a WebSocket and close it at once, so that the client gets the close code."""
    await websocket.accept()
    await close(websocket, why)


async def close(websocket: WebSocket, why: Close, last_words: str | None = None) -> None:
    """Close a WebSocket with a code and a reason, if the client is still connected and reads."""
    if websocket.client_state is WebSocketState.CONNECTED:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if last_words:
                    await websocket.send_text(last_words)
                await websocket.close(why.code, why.reason)
        except (TimeoutError, WebSocketDisconnect):
            return


class _Joint:
    def __init__(self, websocket: WebSocket, channel: Channel, on_text: Callable[[str], Close | None]) -> None:
        self._websocket = websocket
        self._channel = channel
        self._on_text = on_text
        self._loop = asyncio.get_running_loop()
        self._last_byte = self._loop.time()

    async def serve(self, cut: "asyncio.Future[Cut]", idle_timeout: float) -> Close | None:
        """Relay until either side ends. Returns how to close the WebSocket; None if the client has closed it."""
        outward, inward = asyncio.create_task(self._to_client()), asyncio.create_task(self._to_device())
        waited_for: set[asyncio.Future[Any]] = {outward, inward, cut}
        try:
            while (left := self._last_byte + idle_timeout - self._loop.time()) > 0:
                await asyncio.wait(waited_for, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    return _CUT[cut.result()]
                for task in (inward, outward):
                    if task.done():
                        return task.result()
            return Close(CloseCode.IDLE, f"no data was sent for {idle_timeout:g} s")
        finally:
            outward.cancel()
            inward.cancel()
            await asyncio.wait({outward, inward})

    async def _to_client(self) -> Close | None:
        while True:
            try:
                data = await self._channel.read()
            except OSError as error:
                return Close(CloseCode.BAD_GATEWAY, f"the connection to the device broke: {error.strerror}")
            if not data:
                return Close(CloseCode.NORMAL)
            self._last_byte = self._loop.time()
            try:
                await self._websocket.send_bytes(data)
            except WebSocketDisconnect:
                return None

    async def _to_device(self) -> Close | None:
        takes = True
        while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
            if (data := message.get("bytes")) is None:
                if wrong := self._on_text(message["text"]):
                    return wrong
            elif takes:
                self._last_byte = self._loop.time()
                try:
                    await self._channel.write(data)
                except OSError:  # keep reading: the device may still send
                    takes = False
        return None
