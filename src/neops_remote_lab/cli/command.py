"""Shared by all commands: exit statuses, messages, flags, signals."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, TypeAlias

from neops_remote_lab.core.client_settings import ACQUISITION_TIMEOUT, SESSION_TIMEOUT
from neops_remote_lab.core.text import printable_lines

PROGRAM: Final = "neops-remote-lab"
CREDENTIALS: Final = "Credentials: a user name and a password in the address, REMOTE_LAB_TOKEN, REMOTE_LAB_CLIENT_CERT."
"""Epilog of the help of commands that connect to a server."""
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The return type of `ArgumentParser.add_subparsers`."""


COMMAND: Final = "command"
"""Attribute of the options with the arguments after `--`."""


class ExitStatus(IntEnum):
    """Exit statuses of the program, besides 0 and the status of a command that it ran.

    From 124 on they follow `timeout`, `env` and `docker run`; `git bisect run` skips a revision on 125.
    """

    FAILED = 1
    USAGE = 2
    TIMED_OUT = 124
    """The command in the node did not end in time."""
    NO_LAB = 125
    """There is no lab: it did not start, or its session is over. The command was not run, or was ended."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127
    SIGNAL = 128
    """Plus the number of the signal that ended the command or this program."""


def say(message: str) -> None:
    """Print a message on standard error, with control characters escaped."""
    sys.stderr.write(f"{PROGRAM}: {printable_lines(message)}\n")
    sys.stderr.flush()


def refuse(message: str, status: int = ExitStatus.FAILED) -> NoReturn:
    """Exit with a message on standard error."""
    say(message)
    sys.exit(status)


END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A context in which SIGINT, SIGTERM and SIGHUP raise SystemExit, so that `finally` clauses run."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(ExitStatus.SIGNAL + number)

    before = {number: signal.signal(number, leave) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_url_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the server."""
    parser.add_argument("--url", help="address of the server (default: REMOTE_LAB_URL, or the server on this host)")


def add_session_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that selects one of the user's sessions."""
    parser.add_argument(
        "--session",
        metavar="NAME",
        help="name of the session, if there are several on one server (default: default; REMOTE_LAB_SESSION)",
    )


def add_session_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select a session of the user's: its server and its name."""
    add_url_flag(parser)
    add_session_flag(parser)


def add_lab_flags(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a lab and a server, and the timeouts."""
    parser.add_argument("topology", metavar="TOPOLOGY", type=Path, help="netlab topology file, .yml or .yaml")
    parser.add_argument(
        "--file",
        metavar="PATH",
        action="append",
        default=[],
        help="file, directory or pattern that the topology needs, relative to its directory; may be repeated",
    )
    add_url_flag(parser)
    for name, what, default in (
        ("session", "in the queue", SESSION_TIMEOUT),
        ("acquisition", "until the lab is running", ACQUISITION_TIMEOUT),
    ):
        text = f"seconds to wait {what} (default: {default:g}; REMOTE_LAB_{name.upper()}_TIMEOUT)"
        parser.add_argument(f"--{name}-timeout", metavar="SECONDS", type=seconds, help=text)


def seconds(text: str) -> float:
    """An argparse type: a number of seconds above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return value
