"""Starts the programs of the client: the one that keeps a session alive, and those that a user asks for."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def start_detached(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a program that outlives this process and its terminal. Its standard output can be read.

    Args:
        arguments: the program and its arguments.
        log: the file that gets its standard error; emptied before.
        environment: variables on top of those of this process.

    Raises:
        OSError: it cannot be started.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        return subprocess.Popen(
            arguments,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            text=True,
            start_new_session=True,  # no signal of the terminal, its hang-up included, reaches it
        )
    finally:
        os.close(descriptor)


def start(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in this terminal, with this process's standard input and outputs.

    Args:
        arguments: the program and its arguments.
        environment: variables on top of those of this process.
        defaults: variables that those of this process override.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(arguments, env={**(defaults or {}), **os.environ, **(environment or {})})
