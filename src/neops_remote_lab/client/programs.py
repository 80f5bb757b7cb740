"""Starts child processes: the one that keeps a session alive, and the commands of users."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def start_detached(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a program that outlives this process and its terminal. Its standard output is a pipe.

    Args:
        arguments: the program and its arguments.
        log: file for its standard error, truncated first.
        environment: variables in addition to those of this process.

    Raises:
        OSError: the program cannot be started.
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
            start_new_session=True,  # so that signals of the terminal, including SIGHUP, do not reach it
        )
    finally:
        os.close(descriptor)


def start(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, defaults: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program that shares this process's terminal and standard streams.

    Args:
        arguments: the program and its arguments.
        environment: variables in addition to those of this process.
        defaults: variables that this process's variables override.

    Raises:
        OSError: the program cannot be started.
    """
    return subprocess.Popen(arguments, env={**(defaults or {}), **os.environ, **(environment or {})})
