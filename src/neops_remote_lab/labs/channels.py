"""Streams of bytes to and from a device."""

import asyncio
import functools
import json
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.netlab.terminals import Terminal, Terminals

HALF_CLOSE: Final = b""
"""Written to a channel: nothing more is going to be written."""


class Channel(Protocol):
    """Both directions of a stream. At most one task reads and one writes; reading and writing may be cancelled."""

    async def read(self) -> bytes:
        """What has come, empty at the end. Raises OSError where the stream breaks off."""

    async def write(self, data: bytes) -> None:
        """Return when all was taken. Raises OSError where the other side takes no more."""

    async def close(self) -> str | None:
        """End both directions, once nothing is read or written any more; what there is to say of the end, as JSON."""


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


class TerminalChannel:
    """A program on a terminal. What is printed at its end is read before its end is seen."""

    def __init__(self, terminal: Terminal, terminals: Terminals, run_blocking: RunBlocking) -> None:
        self.terminal = terminal
        self._terminals = terminals
        self._run_blocking = run_blocking
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def read(self) -> bytes:
        """What was printed, empty at the end."""
        while (data := self.terminal.read()) is None:
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
        self._ended = not data
        return data

    async def write(self, data: bytes) -> None:
        """Return when all was taken."""
        left = memoryview(data)
        while left:
            if not (taken := self.terminal.write(left)):
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            left = left[taken:]

    async def _ready(self, watch: Callable[..., Any], unwatch: Callable[[int], Any]) -> None:
        ready = asyncio.Event()
        watch(self.terminal.descriptor, ready.set)
        try:
            await ready.wait()
        finally:
            unwatch(self.terminal.descriptor)

    async def close(self) -> str | None:
        """End the program, unless it has ended; its exit status."""
        status = await self._run_blocking(functools.partial(self._terminals.close, self.terminal, ended=self._ended))
        return json.dumps({"exit_status": status}) if self._ended and status is not None else None
