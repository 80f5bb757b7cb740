"""`neops-remote-lab forward`: forward a port of this machine to a port of a node."""

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
    add_session_flags,
    ended_by_signals,
    refuse,
    say,
)
from neops_remote_lab.cli.lab_sessions import CurrentSession, current_session, explained
from neops_remote_lab.client.devices import require_device
from neops_remote_lab.client.forwards import LOOPBACK, Forwards
from neops_remote_lab.client.web_sockets import WebSockets
from neops_remote_lab.core.ports import LAST_PORT
from neops_remote_lab.models.lab import DeviceInfoDto

STANDARD_STREAMS: Final = "-"
PIECE: Final = 1 << 16
"""Maximum number of bytes per read."""


class Target(NamedTuple):
    """A port of a node."""

    node: str
    port: int


class Local(NamedTuple):
    """The local address to listen on; port 0 chooses a free one."""

    host: str = LOOPBACK
    port: int = 0


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "forward",
        help="forward a port of this machine to a port of a node",
        description="Forwards a port of this machine to a TCP port of a node, through the server, until Ctrl-C. Prints "
        "the local address.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("target", metavar="NODE:PORT", type=_target, help="name of the node and its TCP port")
    parser.add_argument(
        "local",
        metavar="LOCAL",
        nargs="?",
        type=_local,
        default=Local(),
        help=f"local [ADDRESS:]PORT (default: a free port on {LOOPBACK}); or {STANDARD_STREAMS} for one connection on "
        "standard input and output, for ssh's ProxyCommand",
    )
    add_session_flags(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Forward the port until a signal arrives. The exit status is 125 if there is no lab or no such node."""
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
    """The node of a name. Exits if the lab has no such node. Raises as `Session.ask`."""
    try:
        with current.forgotten_when_over():
            return require_device(current.session, name)
    except LookupError as error:
        refuse(str(error.args[0]), ExitStatus.NO_LAB)


def forwards_of(current: CurrentSession) -> Forwards:
    """Forwards to nodes of the lab that report problems on standard error."""
    sockets = WebSockets(current.server.access, current.session.session_id, current.settings.request_timeout)
    return Forwards(sockets, say)


def _connect_standard_streams(host: str, port: int) -> bool:
    """Relay standard input and output to a local port until it closes the connection; False if that was a reset."""
    with socket.create_connection((host, port)) as connection:
        threading.Thread(target=_send_standard_input, args=(connection,), daemon=True).start()
        try:
            while data := connection.recv(PIECE):
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
        except ConnectionResetError:  # the reason has been reported already
            return False
        return True


def _send_standard_input(connection: socket.socket) -> None:
    try:
        while data := os.read(sys.stdin.fileno(), PIECE):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the receiving side ends as well
        return


def _target(text: str) -> Target:
    node, separator, port = text.rpartition(":")
    if not (separator and node):
        raise argparse.ArgumentTypeError(f"must be the name of a node and a TCP port, such as r1:22, not {text!r}")
    return Target(node, _port(port, 1))


def _local(text: str) -> Local | None:
    """The local address; None for the standard streams."""
    if text == STANDARD_STREAMS:
        return None
    host, separator, port = text.rpartition(":")
    return Local(host.strip("[]") if separator else LOOPBACK, _port(port, 0))


def _port(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"a TCP port is a number from {least} to {LAST_PORT}, not {text!r}")
    return int(text)
