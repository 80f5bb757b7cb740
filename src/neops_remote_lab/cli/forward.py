"""`neops-remote-lab forward`: let a port of this machine lead to one of a node."""

import argparse
import os
import signal
import socket
import sys
import threading
from typing import Final, NamedTuple

from neops_remote_lab.cli.command import (
    CREDENTIALS,
    Commands,
    ExitStatus,
    add_session_flag,
    add_url_flag,
    ended_by_signals,
    refuse,
    say,
)
from neops_remote_lab.cli.lab_sessions import CurrentSession, current_session, explained
from neops_remote_lab.client.devices import require_device
from neops_remote_lab.client.forwards import LOOPBACK, Forwards
from neops_remote_lab.client.web_sockets import WebSockets
from neops_remote_lab.models.lab import DeviceInfoDto

STANDARD_STREAMS: Final = "-"
PIECE: Final = 1 << 16
"""Most bytes that are read at once."""


class Target(NamedTuple):
    """A port of a node."""

    node: str
    port: int


class Local(NamedTuple):
    """Where this machine listens; port 0 is a free one."""

    host: str = LOOPBACK
    port: int = 0


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "forward",
        help="let a port of this machine lead to one of a node",
        description="Lets a port of this machine lead to a TCP port of a node, through the server, until Ctrl-C. "
        "It prints the address to connect to.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("target", metavar="NODE:PORT", type=_target, help="name of the node, and its TCP port")
    parser.add_argument(
        "local",
        metavar="LOCAL",
        nargs="?",
        type=_local,
        default=Local(),
        help=f"[ADDRESS:]PORT of this machine (default: a free port of {LOOPBACK}); or {STANDARD_STREAMS} for one "
        "connection with the standard input and output, as a ProxyCommand of ssh",
    )
    add_url_flag(parser)
    add_session_flag(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Forward until a signal comes. The program's exit status is 125 when there is no lab or no such node."""
    node, port = options.target
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        node_of(current, node)
        with forwards_of(current) as forwards:
            if options.local is None:
                with forwards.open(node, port) as forward:
                    whole = _connect_standard_streams(forward.host, forward.port)
                sys.exit(0 if whole else ExitStatus.NO_LAB)
            with forwards.open(node, port, *options.local) as forward:
                sys.stdout.write(f"{forward.host}:{forward.port}\n")
                sys.stdout.flush()
                while True:
                    signal.pause()


def node_of(current: CurrentSession, name: str) -> DeviceInfoDto:
    """The node of a name; ends the program where the lab has none. Raises as `Session.ask`."""
    try:
        with current.forgotten_when_over():
            return require_device(current.session, name)
    except LookupError as error:
        refuse(str(error.args[0]), ExitStatus.NO_LAB)


def forwards_of(current: CurrentSession) -> Forwards:
    """Opens ports that lead to nodes of the lab; trouble with a connection is told on standard error."""
    sockets = WebSockets(current.server.access, current.session.session_id, current.settings.request_timeout)
    return Forwards(sockets, say)


def _connect_standard_streams(host: str, port: int) -> bool:
    """Connect standard input and output with a port, until that closes the connection; False where it breaks off."""
    with socket.create_connection((host, port)) as connection:
        threading.Thread(target=_send_standard_input, args=(connection,), daemon=True).start()
        try:
            while data := connection.recv(PIECE):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        except ConnectionResetError:  # the user has been told why
            return False
        return True


def _send_standard_input(connection: socket.socket) -> None:
    try:
        while data := os.read(sys.stdin.fileno(), PIECE):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # whoever reads from the connection notices
        return


def _target(text: str) -> Target:
    node, separator, port = text.rpartition(":")
    if not (separator and node):
        raise argparse.ArgumentTypeError(f"must be the name of a node and a TCP port, such as r1:22, not {text!r}")
    return Target(node, _port(port, 1))


def _local(text: str) -> Local | None:
    """Where to listen; None for the standard streams."""
    if text == STANDARD_STREAMS:
        return None
    host, separator, port = text.rpartition(":")
    return Local(host.strip("[]") if separator else LOOPBACK, _port(port, 0))


def _port(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"a TCP port is a number from {least} to 65535, not {text!r}")
    return int(text)
