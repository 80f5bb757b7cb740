"""Connections for httpcore that notice a response while the request is still being sent.

A server may refuse an upload before it has read it all. httpcore would send the rest before it reads the response.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore
from httpcore import SOCKET_OPTION, AsyncNetworkBackend, AsyncNetworkStream

from neops_remote_lab.api import hops

READ_BYTES: Final = 64 * 1024
"""Maximum bytes read at a time, as httpcore does."""


class DuplexBackend(AsyncNetworkBackend):
    """Opens the connections of an httpcore pool."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> AsyncNetworkStream:
        """Open a connection; `timeout` is in seconds."""
        return DuplexStream(await self._backend.connect_tcp(host, port, timeout, local_address, socket_options))


class DuplexStream(AsyncNetworkStream):
    """A connection that stops sending a request as soon as its response arrives."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self._stream = stream
        self._has_sent_head = False
        self._reading: asyncio.Task[bytes] | None = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Send data; raises `httpcore.WriteError`, after which httpcore reads the response, if that has arrived."""
        if not buffer:
            return
        if not self._has_sent_head:
            self._has_sent_head = True
            await self._stream.write(buffer, timeout)
            return
        if self._reading is None:
            self._reading = asyncio.create_task(self._stream.read(READ_BYTES))
        await hops.unless(self._stream.write(buffer, timeout), self._reading)
        if self._reading.done():
            raise httpcore.WriteError("the response arrived before the end of the request")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read data, that which arrived during the last `write` first."""
        self._has_sent_head = False
        if self._reading is None:
            return await self._stream.read(max_bytes, timeout)
        reading, self._reading = self._reading, None
        return await reading

    async def aclose(self) -> None:
        """Close the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncNetworkStream:
        """Encrypt the connection."""
        return DuplexStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks about the connection."""
        return self._stream.get_extra_info(info)
