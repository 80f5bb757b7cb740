"""The program `neops-remote-lab`: the server and the client commands.

Each command is a module of this package with `add_parser(commands)`, which adds and returns its parser, and
`run(options)`, which gets the parsed options and the parser itself as `options.parser`. A command that runs another
program has `COMMAND` among the defaults of its parser; the option then has the arguments after `--`, or None.

Only the module of the command that runs is imported, except for help and usage errors: the server needs no HTTP client,
and the client commands need no server.
"""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, Protocol, cast

from neops_remote_lab.cli import serve
from neops_remote_lab.cli.command import COMMAND, PROGRAM, Commands, ExitStatus

COMMANDS: Final = (
    *(serve.NAME, "queue", "up", "down", "devices", "log", "exec", "console", "ssh", "forward", "run"),
    "copy-database",
)
"""In the order of the help. A module's name has `_` instead of `-`."""


class _Command(Protocol):
    def add_parser(self, commands: Commands) -> argparse.ArgumentParser: ...

    def run(self, options: argparse.Namespace) -> None: ...


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A command line that is empty or begins with a flag means `serve`.

    The exit status is 2 if a flag or a variable is wrong; `ExitStatus` has the others.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words.insert(0, serve.NAME)
    words, command = _cut(words)
    options = _parser(words[0]).parse_args(words)
    if command is not None and not hasattr(options, COMMAND):
        options.parser.error(f"unrecognized arguments: {' '.join(['--', *command])}")
    setattr(options, COMMAND, command)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
        sys.exit(ExitStatus.SIGNAL + signal.SIGPIPE)


def _cut(words: list[str]) -> tuple[list[str], list[str] | None]:
    """Split the arguments at `--` into ours and those of another program; None without `--`."""
    if "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def _parser(word: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        usage="%(prog)s [flag ...]\n       %(prog)s command ...",
        description="Shares the netlab lab host that it runs on. Without a command it starts the server.",
        epilog=serve.EPILOG,
    )
    commands = parser.add_subparsers(title="commands", metavar="command", prog=PROGRAM)
    for name in (word,) if word in COMMANDS else COMMANDS:
        command = cast("_Command", importlib.import_module(f"{__package__}.{name.replace('-', '_')}"))
        added = command.add_parser(commands)
        added.set_defaults(run=command.run, parser=added)
    serve.add_flags(parser)  # only for the help: `main` passes them to `serve`
    return parser
