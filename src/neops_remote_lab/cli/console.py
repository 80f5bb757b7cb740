"""`neops-remote-lab console`: open a terminal in a node of the lab."""

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from neops_remote_lab.cli import terminal
from neops_remote_lab.cli.command import (
    COMMAND,
    CREDENTIALS,
    Commands,
    ExitStatus,
    add_session_flags,
    ended_by_signals,
    refuse,
    say,
)
from neops_remote_lab.cli.forward import node_of
from neops_remote_lab.cli.lab_sessions import current_session, explained
from neops_remote_lab.cli.terminal import Action
from neops_remote_lab.client.devices import path_of
from neops_remote_lab.client.web_sockets import WebSockets, reason_of_close

PIECE: Final = 1 << 14
"""Maximum number of bytes per read."""
END_OF_TEXT: Final = b"\x04"
"""Ctrl-D, which means end of input on a terminal."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "console",
        usage="%(prog)s NODE [flag ...] [-- COMMAND [ARGUMENT ...]]",
        help="open a shell in a node",
        description="Opens a shell in a node of the lab, or runs a command on a terminal there. At the start of a line "
        "~. disconnects and ~? shows help.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("node", metavar="NODE", help="name of the node in the topology")
    add_session_flags(parser)
    parser.set_defaults(**{COMMAND: None})
    return parser


def run(options: argparse.Namespace) -> None:
    """Connect the terminal with a console.

    The exit status is that of the shell or command in the node, 0 after `~.`, or 125 if there is no lab or no such node
    or if the connection breaks.
    """
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        node_of(current, options.node)
        sockets = WebSockets(current.server.access, current.session.session_id, current.settings.request_timeout)
        try:
            status = asyncio.run(_serve(sockets, options.node, options.command))
        except ConnectionClosedError as error:
            refuse(f"{options.node}: {reason_of_close(error)}", ExitStatus.NO_LAB)
    sys.exit(status)


async def _serve(sockets: WebSockets, node: str, command: Sequence[str] | None) -> int:
    """Connect the terminal with a console until either side ends.

    Returns:
        The exit status of the program in the node, 0 if the user disconnects.

    Raises:
        ConnectionClosedError: the connection broke.
        And as `WebSockets.open`.
    """
    keyboard, size = sys.stdin.fileno(), terminal.size()
    parameters = {} if size is None else {"columns": str(size.columns), "rows": str(size.lines)}
    parameters |= {"command": shlex.join(command)} if command else {}
    async with await sockets.open(f"{path_of(node, 'console')}?{urlencode(parameters)}") as console:
        if os.isatty(keyboard):
            say(f"console of {node}; ~. at the start of a line disconnects")
        with terminal.raw_mode(keyboard), _resized_with_the_terminal(console):
            showing = asyncio.create_task(_show(console))
            typing = asyncio.create_task(_type(console, keyboard))
            try:
                await asyncio.wait({showing, typing}, return_when=asyncio.FIRST_COMPLETED)
                if showing.done():
                    return showing.result()
                typing.result()
                return 0
            finally:
                showing.cancel()
                typing.cancel()
                await asyncio.wait({showing, typing})


async def _show(console: ClientConnection) -> int:
    """Print the output until the console ends. Returns the exit status of the program."""
    status = 0
    async for message in console:
        if isinstance(message, bytes):
            sys.stdout.buffer.write(message)
            sys.stdout.buffer.flush()
        else:
            status = int(json.loads(message).get("exit_status", 0))
    return status


async def _type(console: ClientConnection, keyboard: int) -> None:
    """Send the input until the user disconnects. The end of the console is noticed by `_show`."""
    escapes = terminal.Escapes() if os.isatty(keyboard) else None
    with contextlib.suppress(ConnectionClosed):
        while typed := await _read(keyboard):
            for part in escapes.feed(typed) if escapes else (typed,):
                if part is Action.LEAVE:
                    return
                if part is Action.HELP:
                    sys.stdout.write(terminal.HELP)
                    sys.stdout.flush()
                else:
                    await console.send(part)
        await console.send(END_OF_TEXT)
    await asyncio.get_running_loop().create_future()


async def _read(descriptor: int) -> bytes:
    """Wait for input and read it; empty at the end."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    try:
        loop.add_reader(descriptor, ready.set_result, None)
    except PermissionError:  # a regular file, which never blocks
        return os.read(descriptor, PIECE)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
    try:
        return os.read(descriptor, PIECE)
    except OSError:  # the terminal has disconnected
        return b""


@contextlib.contextmanager
def _resized_with_the_terminal(console: ClientConnection) -> Iterator[None]:
    """Send the size of the terminal to the console, now and after each change."""
    loop, sends = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    async def send() -> None:
        if (size := terminal.size()) is not None:
            with contextlib.suppress(ConnectionClosed):
                await console.send(json.dumps({"resize": size}))

    def resize() -> None:
        task = loop.create_task(send())
        sends.add(task)  # the event loop keeps only weak references
        task.add_done_callback(sends.discard)

    resize()
    loop.add_signal_handler(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
