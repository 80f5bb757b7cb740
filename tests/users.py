"""Runs programs as other users of this machine, for tests of permissions."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import neops_remote_lab

FIRST_USER = 54321
SECOND_USER = 54322
"""User ids without an entry in /etc/passwd."""


def as_user(user: int, words: Sequence[object]) -> list[str]:
    """A command that runs another command as a user. Skips the test if this process may not do that."""
    if reason := _missing():
        pytest.skip(reason)
    return [*_prefix(user), *map(str, words)]


def python_environment(**more: str) -> dict[str, str]:
    """An environment in which another user's Python finds this package, and no home directory is named."""
    kept = {name: value for name, value in os.environ.items() if name not in {"HOME", "USER", "LOGNAME", "USERNAME"}}
    return {**kept, "PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent), **more}


def run_as(user: int, words: Sequence[object], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, to its end."""
    return subprocess.run(
        as_user(user, words), env=python_environment(**more), cwd="/", capture_output=True, text=True, check=False
    )


@contextmanager
def directory_for_all() -> Iterator[Path]:
    """A temporary directory that every user can enter, unlike those of pytest."""
    made = Path(tempfile.mkdtemp(prefix="neops-remote-lab-users-"))
    try:
        made.chmod(0o755)
        yield made
    finally:
        shutil.rmtree(made)


def _prefix(user: int) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]


@functools.cache
def _missing() -> str | None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return "only root can run programs as another user, with setpriv"
    probe = [*_prefix(FIRST_USER), sys.executable, "-c", "import neops_remote_lab.api.app"]
    done = subprocess.run(probe, env=python_environment(), cwd="/", capture_output=True, check=False)
    return "this Python or its packages cannot be read by other users" if done.returncode else None
