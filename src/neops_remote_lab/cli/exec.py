"""`neops-remote-lab exec`: run a command in a node of the lab."""

import argparse
import sys

from neops_remote_lab.cli.command import (
    COMMAND,
    CREDENTIALS,
    Commands,
    ExitStatus,
    add_session_flags,
    ended_by_signals,
    refuse,
    say,
    seconds,
)
from neops_remote_lab.cli.lab_sessions import CurrentSession, current_session, explained
from neops_remote_lab.client.devices import EXEC_TIMEOUT, ExecResult, execute


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "exec",
        usage="%(prog)s NODE [flag ...] -- COMMAND [ARGUMENT ...]",
        help="run a command in a node",
        description="Runs a program in a node of the lab, without a shell, and prints its output when it has ended.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("node", metavar="NODE", help="name of the node in the topology")
    parser.add_argument("-i", "--stdin", action="store_true", help="pass standard input on to the command")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=EXEC_TIMEOUT,
        help=f"seconds after which the command is ended (default: {EXEC_TIMEOUT:g})",
    )
    add_session_flags(parser)
    parser.set_defaults(**{COMMAND: None})
    return parser


def run(options: argparse.Namespace) -> None:
    """Run the command. The exit status is that of the command, 124 if it took too long, or 125 if there is no lab or no
    such node.
    """
    if not options.command:
        options.parser.error("which command? It follows the flags, after --")
    stdin = sys.stdin.buffer.read() if options.stdin else b""
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        result = _execute(current, options, stdin)
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(result.stderr)
    sys.stderr.buffer.flush()
    if result.truncated:
        say("the output of the command was longer than the server's limit and is incomplete")
    sys.exit(result.exit_status)


def _execute(current: CurrentSession, options: argparse.Namespace, stdin: bytes) -> ExecResult:
    until = current.server.now() + options.timeout + current.settings.request_timeout
    try:
        with current.forgotten_when_over():
            return execute(
                current.session, options.node, options.command, stdin=stdin, timeout=options.timeout, until=until
            )
    except TimeoutError as error:
        refuse(str(error), ExitStatus.TIMED_OUT)
