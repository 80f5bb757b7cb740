"""`neops-remote-lab ssh`: log in to a node with the user's own ssh."""

import argparse
import sys
from typing import Final

from neops_remote_lab.cli.command import COMMAND, CREDENTIALS, Commands, ExitStatus, add_session_flags
from neops_remote_lab.cli.foreground import Foreground, require_program
from neops_remote_lab.cli.forward import forwards_of, node_of
from neops_remote_lab.cli.lab_sessions import current_session, explained
from neops_remote_lab.client.reachable import SSH_PORT

SSH: Final = "ssh"
NO_HOST_KEYS: Final = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
"""Options of ssh, because each lab has new host keys."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "ssh",
        usage="%(prog)s NODE [flag ...] [-- SSH_ARGUMENT ...]",
        help="log in to a node with ssh",
        description="Logs in to a node with this machine's ssh, through the server, as the user of the inventory. The "
        "arguments after -- are passed to ssh: a command or further options.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("node", metavar="NODE", help="name of the node in the topology")
    parser.add_argument("-l", "--login", metavar="USER", help="user name on the node (default: from the inventory)")
    parser.add_argument("-p", "--port", metavar="PORT", type=int, help="TCP port of the node (default: 22)")
    add_session_flags(parser)
    parser.set_defaults(**{COMMAND: None})
    return parser


def run(options: argparse.Namespace) -> None:
    """Log in. The exit status is that of ssh, or 125 if there is no lab or no such node."""
    require_program(SSH)
    with explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        raw = node_of(current, options.node).raw
        user = options.login or raw.get("ansible_user")
        port = options.port or int(raw.get("ansible_port") or SSH_PORT)
        with forwards_of(current) as forwards, forwards.open(options.node, port) as forward:
            settings = (*NO_HOST_KEYS, f"HostKeyAlias={options.node}")
            words = [SSH, "-p", str(forward.port), *(word for setting in settings for word in ("-o", setting))]
            words += ["-l", str(user)] if user else []
            status = Foreground([*words, forward.host, *(options.command or ())]).run()
    sys.exit(status)
