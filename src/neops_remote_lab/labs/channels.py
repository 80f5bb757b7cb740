"""Byte streams to and from a device."""

import asyncio
import functools
import json
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.netlab.terminals import Terminal, Terminals

HALF_CLOSE: Final = b""
"""Written to a channel to signal the end of data in this direction."""


class Channel(Protocol):
    """A bidirectional stream for one reading and one writing task. Reads and writes may be cancelled."""

    async def read(self) -> bytes:
        """Wait for data; empty at the end. Raises OSError if the stream breaks."""

    async def write(self, data: bytes) -> None:
        """Write all data. Raises OSError if the other side does not accept more."""

    async def close(self) -> str | None:
        """Close both directions, after the last read and write. Returns a last message for the client, as JSON."""


class TcpChannel:
    """A TCP connection."""

    def __init__(self, connection: socket.socket, piece_bytes: int) -> None:
        """`piece_bytes`: maximum size of a read; there is no other buffer in this process."""
        self._connection = connection
        self._piece_bytes = piece_bytes
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Wait for data; empty at the end."""
        return await self._loop.sock_recv(self._connection, self._piece_bytes)

    async def write(self, data: bytes) -> None:
        """Write all data, or shut down the sending direction for `HALF_CLOSE`."""
        if data == HALF_CLOSE:
            self._connection.shutdown(socket.SHUT_WR)
        else:
            await self._loop.sock_sendall(self._connection, data)

    async def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class TerminalChannel:
    """A program on a terminal. All of its output is read before its end is reported."""

    def __init__(self, terminal: Terminal, terminals: Terminals, run_blocking: RunBlocking) -> None:
        self.terminal = terminal
        self._terminals = terminals
        self._run_blocking = run_blocking
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def read(self) -> bytes:
        """Wait for output; empty at the end."""
        while (data := self.terminal.read()) is None:
            await self._ready(self._loop.add_reader, self._loop.remove_reader)
        self._ended = not data
        return data

    async def write(self, data: bytes) -> None:
        """Write all data to the terminal."""
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
        """End the program, unless it has ended. Returns a message with its exit status if it ended by itself."""
        status = await self._run_blocking(functools.partial(self._terminals.close, self.terminal, ended=self._ended))
        return json.dumps({"exit_status": status}) if self._ended and status is not None else None
