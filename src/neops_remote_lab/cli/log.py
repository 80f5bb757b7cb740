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
from neops_remote_lab.cli.lab_sessions import CurrentSession, current_session, explained
from neops_remote_lab.client.answers import raise_for_error
from neops_remote_lab.client.connection import headers_of
from neops_remote_lab.client.events import ACCEPT, END, events_of
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
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB), current_session(options) as session:
        if options.follow:
            _follow(session)
        else:
            sys.stdout.write(printable_lines(session.ask("GET", "/lab/log").text))


def _follow(session: CurrentSession) -> None:
    """Print each line as it arrives."""
    headers = headers_of(session.session.session_id) | ACCEPT
    with session.server.stream("/lab/log", headers=headers) as answer:
        raise_for_error(answer)
        for event, data in events_of(answer):
            if event == END:
                say(data or "the lab is gone")
                return
            sys.stdout.write(f"{printable_lines(data)}\n")
            sys.stdout.flush()
