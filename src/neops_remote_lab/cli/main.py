"""The program `neops-remote-lab`: the server, and the commands for people.

A command is a module with `add_parser(commands)`, which adds its parser and returns it, and `run(options)`, which gets
what the parser has read and that parser itself as `options.parser`. All of them are imported at each start of the
program: what only `run` needs is imported there.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from neops_remote_lab.cli import queue, serve
from neops_remote_lab.cli.command import PROGRAM

COMMANDS: Final = (serve, queue)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a command line that is empty or begins with a flag is that of `serve`.

    The program's exit status is 2 when a flag or a variable is wrong, and 1 when the command fails.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help"}):
        words.insert(0, serve.NAME)
    options = _parser().parse_args(words)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        usage="%(prog)s [flag ...]\n       %(prog)s command ...",
        description="Shares the netlab lab host that it runs on. Without a command it starts the server.",
        epilog=serve.EPILOG,
    )
    commands = parser.add_subparsers(title="commands", metavar="command", prog=PROGRAM)
    for command in COMMANDS:
        added = command.add_parser(commands)
        added.set_defaults(run=command.run, parser=added)
    serve.add_flags(parser)  # for the help: `main` hands them to `serve`
    return parser
