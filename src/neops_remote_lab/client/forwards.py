"""Forwards ports of this machine to ports of devices, through the server.

One thread runs an event loop for all ports. Each connection to a port uses one WebSocket to the server, which opens one
TCP connection to the device. Flow control works end to end.
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
from neops_remote_lab.client.web_sockets import WebSockets, reason_of_close

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids and credentials

T = TypeVar("T")

LOOPBACK: Final = "127.0.0.1"
PIECE: Final = 1 << 18
"""Maximum size of a message, in bytes."""
HALF_CLOSE: Final = b""
"""The message that means end of data in this direction; the device may still send."""
_AT_ONCE: Final = struct.pack("ii", 1, 0)
"""`struct linger`: unsent data is dropped and the peer gets a reset."""
BACKLOG: Final = 128
"""Maximum number of connections that wait to be accepted."""

_log = logging.getLogger(__name__)


class Forward:
    """A forwarded port. As a context manager it is closed at the end of the block.

    Attributes:
        host: the local address.
        port: the local port.
    """

    def __init__(self, forwards: "Forwards", listener: asyncio.Server, tasks: set[asyncio.Task[None]]) -> None:
        """Created by `Forwards.open`."""
        self.host, self.port = listener.sockets[0].getsockname()[:2]
        self._forwards = forwards
        self._listener = listener
        self._tasks = tasks

    def close(self) -> None:
        """Close the port and its connections. May be called repeatedly."""
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
        """Run a coroutine in the event loop, which is started if necessary, and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Cancel what is left, and end the thread."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:  # which cancels what is left at its end
            runner.run(self._over.wait())


class Forwards:
    """All forwarded ports of a session, and the thread that serves them. As a context manager it closes them.

    Args:
        sockets: opens the WebSockets of the session.
        on_trouble: called, from any thread, with a message when a connection cannot be opened or breaks; by default
            the messages are logged as warnings.
    """

    def __init__(self, sockets: WebSockets, on_trouble: Callable[[str], object] | None = None) -> None:
        self._sockets = sockets
        self._on_trouble = on_trouble or _log.warning
        self._open: set[Forward] = set()
        self._loop: _LoopThread | None = None
        self._closing = threading.Lock()

    def open(self, device: str, port: int, host: str = LOOPBACK, local_port: int = 0) -> Forward:
        """Forward a port of this machine to a port of a device.

        Args:
            device: the device's name.
            port: TCP port of the device.
            host: local address to listen on.
            local_port: local port; 0 chooses a free one.

        Raises:
            OSError: the address does not exist on this machine, or the port is in use.
        """
        forward = self._run(self._listen(device, port, host, local_port))
        self._open.add(forward)
        return forward

    def close_one(self, forward: Forward) -> None:
        """Close a port and its connections. May be called repeatedly."""
        with self._closing:
            if forward in self._open:
                self._open.remove(forward)
                self._run(forward.end())

    def close(self) -> None:
        """Close all ports and their connections. May be called repeatedly."""
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
        """Serve one connection to a forwarded port. If the connection to the device breaks, the client gets a reset."""
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
    """Close a connection with a reset, so that the peer does not mistake it for the end of the data."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # already closed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()


async def connect_to_device(
    sockets: WebSockets, device: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Relay two streams to and from a port of a device, until the device closes the connection.

    Raises:
        httpx.HTTPError: the server refused, or cannot be reached.
        ConnectionClosedError: the connection broke; `rcvd` has the server's reason.
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
    with contextlib.suppress(ConnectionClosed):  # the receiving side raises the reason
        try:
            while data := await reader.read(PIECE):
                await web_socket.send(data)
            await web_socket.send(HALF_CLOSE)
        except OSError:  # the other end has reset the connection
            await web_socket.close()


def explained(error: Exception, access: Access) -> str:
    """A message that says why a connection failed."""
    if isinstance(error, ConnectionClosedError):
        return reason_of_close(error)
    return reason_of(error, access) if isinstance(error, httpx.TransportError) else str(error)
