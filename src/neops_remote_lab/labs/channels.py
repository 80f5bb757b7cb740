"""Streams of bytes to and from a device."""

import asyncio
import socket
from typing import Final, Protocol

HALF_CLOSE: Final = b""
"""Written to a channel: nothing more is going to be written."""


class Channel(Protocol):
    """Both directions of a stream. At most one task reads and one writes; reading and writing may be cancelled."""

    async def read(self) -> bytes:
        """What has come, empty at the end. Raises OSError where the stream breaks off."""

    async def write(self, data: bytes) -> None:
        """Return when all was taken. Raises OSError where the other side takes no more."""

    async def close(self) -> None:
        """End both directions, once nothing is read or written any more."""


class TcpChannel:
    """A TCP connection."""

    def __init__(self, connection: socket.socket, piece_bytes: int) -> None:
        """`piece_bytes`: most that is read at once. Nothing is held beyond that but what the kernel holds."""
        self._connection = connection
        self._piece_bytes = piece_bytes
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """What has come, empty at the end."""
        return await self._loop.sock_recv(self._connection, self._piece_bytes)

    async def write(self, data: bytes) -> None:
        """Return when all was taken."""
        if data == HALF_CLOSE:
            self._connection.shutdown(socket.SHUT_WR)
        else:
            await self._loop.sock_sendall(self._connection, data)

    async def close(self) -> None:
        """End both directions."""
        self._connection.close()
