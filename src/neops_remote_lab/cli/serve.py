"""`neops-remote-lab serve`: run the server of this host."""

import argparse
import gc
from typing import Final

from neops_remote_lab import __version__
from neops_remote_lab.cli.command import PROGRAM, Commands
from neops_remote_lab.cli.settings import Settings
from neops_remote_lab.core import settings

NAME: Final = "serve"
EPILOG: Final = "Every flag has an environment variable NEOPS_REMOTE_LAB_FLAG; the flag wins."


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        NAME,
        help="start the server; the default without a command",
        prog=PROGRAM,
        usage=f"%(prog)s [{NAME}] [flag ...]",
        description="Starts the server.",
        epilog=EPILOG,
    )
    add_flags(parser)
    return parser


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the server's flags."""
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    settings.add_flags(parser, Settings)


def run(options: argparse.Namespace) -> None:
    """Run the server until a signal ends it."""
    try:
        chosen = settings.read_settings(Settings, vars(options))
    except ValueError as error:
        options.parser.error(str(error))
    gc.disable()  # modules are never freed, so that looking for garbage among them only delays the start
    from neops_remote_lab.cli import server  # slow, and not needed by other commands

    gc.freeze()
    gc.enable()
    server.run(chosen.server, chosen.service)
