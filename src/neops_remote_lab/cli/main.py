"""The program `neops-remote-lab`: the server, and the sub-commands for people."""

import argparse
import sys
from collections.abc import Sequence

from neops_remote_lab import __version__
from neops_remote_lab.core.settings import add_flags, parse_settings


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the server, or run a sub-command; the program's exit status is not 0 when it cannot."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["queue"]:
        from neops_remote_lab.cli import show_queue  # noqa: PLC0415 - a server needs no HTTP client

        show_queue.main(words[1:])
        return
    parser = argparse.ArgumentParser(
        prog="neops-remote-lab",
        description="Shares the netlab lab host that it runs on. `neops-remote-lab queue` shows who waits.",
        epilog="Every flag has an environment variable NEOPS_REMOTE_LAB_FLAG; the flag wins.",
    )
    parser.add_argument("--version", action="version", version=f"neops-remote-lab {__version__}")
    add_flags(parser)
    settings = parse_settings(parser, words)
    from neops_remote_lab.cli import serve  # noqa: PLC0415 - sub-commands need no server

    serve.run(settings)
