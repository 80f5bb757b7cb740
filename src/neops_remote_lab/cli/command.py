"""What the commands of the program share."""

import argparse
import sys
from typing import Final, NoReturn, TypeAlias

PROGRAM: Final = "neops-remote-lab"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns."""


def refuse(message: str) -> NoReturn:
    """End the program with status 1 and a sentence on standard error."""
    sys.exit(f"{PROGRAM}: {message}")
