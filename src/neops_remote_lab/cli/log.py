"""`neops-remote-lab log`: show netlab's output for the lab."""

import argparse
import sys

from neops_remote_lab.cli.command import (
    CREDENTIALS,
    Commands,
    ExitStatus,
    add_session_flags,
    ended_by_signals,
    say,
)
from neops_remote_lab.cli.lab_sessions import current_session, explained
from neops_remote_lab.client.lab_log import LabLog
from neops_remote_lab.core.text import printable_lines


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "log",
        help="show netlab's output for the lab",
        description="Shows netlab's output for the lab that `up` started.",
        epilog=CREDENTIALS,
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow the output until the lab has ended, or until Ctrl-C"
    )
    add_session_flags(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the log. The exit status is 125 if there is no lab."""
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB), current_session(options) as current:
        if not options.follow:
            sys.stdout.write(printable_lines(current.ask("GET", "/lab/log").text))
            return
        with current.forgotten_when_over():
            for line in LabLog(current.server, current.session, say).follow():
                sys.stdout.write(f"{printable_lines(line)}\n")
                sys.stdout.flush()
