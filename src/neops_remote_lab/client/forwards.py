"""Ports of this machine that lead to ports of devices, through the server.

One thread runs an event loop for all of them. Each connection to such a port is one WebSocket to the server and one TCP
connection from there to the device; neither side reads more than the other one takes.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self, TypeVar

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from neops_remote_lab.client.access import Access
from neops_remote_lab.client.devices import path_of
from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.client.failures import reason_of
from neops_remote_lab.client.web_sockets import WebSockets
from neops_remote_lab.core.text import one_line

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids and credentials

T = TypeVar("T")

LOOPBACK: Final = "127.0.0.1"
PIECE: Final = 1 << 18
"""Most bytes of one message."""
HALF_CLOSE: Final = b""
"""The message after which nothing more is sent; the device may go on."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""`struct linger`: what is unsent is dropped, and the other end gets a reset."""
BACKLOG: Final = 128
"""Connections that wait to be accepted."""

_log = logging.getLogger(__name__)


class Forward:
    """A port of this machine that leads to one of a device, until it is closed; a context manager.

    Attributes:
        host: the address of this machine.
        port: the port.
    """

    def __init__(self, forwards: "Forwards", listener: asyncio.Server, tasks: set[asyncio.Task[None]]) -> None:
        """Made by `Forwards.open`."""
        self.host, self.port = listener.sockets[0].getsockname()[:2]
        self._forwards = forwards
        self._listener = listener
        self._tasks = tasks

    def close(self) -> None:
        """Close the port and its connections. May be called again."""
        self._forwards.close_one(self)

    async def end(self) -> None:
        """As `close`, in the event loop."""
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="remote-lab-forwards", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the event loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Cancel what is left, and end the thread."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # which cancels what is left at its end
            runner.run(self._over.wait())


class Forwards:
    """All forwarded ports of a session, and the thread that serves them. A context manager.

    Args:
        sockets: opens the WebSockets of the session whose lab it is.
        on_trouble: called, from any thread, with a sentence when a connection cannot be opened or breaks off; without
            it the sentences are logged as warnings.
    """

    def __init__(self, sockets: WebSockets, on_trouble: Callable[[str], object] | None = None) -> None:
        self._sockets = sockets
        self._on_trouble = on_trouble or _log.warning
        self._open: set[Forward] = set()
        self._loop: _LoopThread | None = None
        self._closing = threading.Lock()

    def open(self, device: str, port: int, host: str = LOOPBACK, local_port: int = 0) -> Forward:
        """Forward a port of this machine to one of a device.

        Args:
            device: the device's name.
            port: its TCP port.
            host: the address of this machine to listen on.
            local_port: the port of this machine; 0 takes a free one.

        Raises:
            OSError: this machine has no such address, or the port is in use.
        """
        forward = self._run(self._listen(device, port, host, local_port))
        self._open.add(forward)
        return forward

    def close_one(self, forward: Forward) -> None:
        """Close a port and its connections. May be called again."""
        with self._closing:
            if forward in self._open:
                self._open.remove(forward)
                self._run(forward.end())

    def close(self) -> None:
        """Close all ports and their connections. May be called again."""
        for forward in list(self._open):
            self.close_one(forward)
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            self._loop = _LoopThread()
        return self._loop.run(work)

    async def _listen(self, device: str, port: int, host: str, local_port: int) -> Forward:
        tasks: set[asyncio.Task[None]] = set()

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(device, port, reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        listener = await asyncio.start_server(serve, host, local_port, limit=PIECE, backlog=BACKLOG)
        return Forward(self, listener, tasks)

    async def _serve(self, device: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to a forwarded port; whoever has opened it sees a reset where it breaks off."""
        try:
            await connect_to_device(self._sockets, device, port, reader, writer)
            writer.close()
        except (httpx.HTTPError, InvalidSetting, ConnectionClosedError, OSError) as error:
            self._on_trouble(f"{device}:{port}: {explained(error, self._sockets.access)}")
            _reset(writer)
        except BaseException:
            _reset(writer)
            raise


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other end cannot take it for the end of the data."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # it is closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


async def connect_to_device(
    sockets: WebSockets, device: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Connect two streams with a port of a device, until the device closes the connection.

    Raises:
        httpx.HTTPError: the server refused, or cannot be reached.
        ConnectionClosedError: the connection broke off; `rcvd` has the server's reason.
        OSError: a stream was closed.
    """
    async with await sockets.open(path_of(device, f"tcp/{port}")) as web_socket:
        sender = asyncio.create_task(_send_all(reader, web_socket))
        try:
            async for message in web_socket:
                writer.write(message if isinstance(message, bytes) else message.encode())
                await writer.drain()
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)


async def _send_all(reader: asyncio.StreamReader, web_socket: ClientConnection) -> None:
    with contextlib.suppress(ConnectionClosed):  # whoever receives is told why
        try:
            while data := await reader.read(PIECE):
                await web_socket.send(data)
            await web_socket.send(HALF_CLOSE)
        except OSError:  # the other end has reset the connection
            await web_socket.close()


def explained(error: Exception, access: Access) -> str:
    """What has gone wrong with a connection, in words."""
    if isinstance(error, ConnectionClosedError):
        received = error.rcvd
        return one_line(received.reason or str(received)) if received else "the connection to the server broke off"
    return reason_of(error, access) if isinstance(error, httpx.TransportError) else str(error)
