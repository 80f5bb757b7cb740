"""Helpers for tests of the pytest plugin: runs of a user's project with lab fixtures."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import FakeNetlab
from tests.fork_server import Process, Program, Stream, popen
from tests.server import LabServer

PLUGIN = "neops_remote_lab.testing.plugin"
CONFTEST = """
import pytest
from neops_remote_lab.testing.fixture import remote_lab_fixture

shared = remote_lab_fixture("shared.yml", reuse_lab=True)
fresh = remote_lab_fixture("fresh.yml")
broken = remote_lab_fixture("broken.yml")

@pytest.fixture
def router(shared):
    return shared[0]
"""
BLOCK = """
    import pathlib, threading
    pathlib.Path("blocked").touch()
    threading.Event().wait(60)
    pathlib.Path("woke").touch()
"""


def queue(lab_server: LabServer) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = httpx.get(f"{lab_server.url}/queue").json()["sessions"]
    return sessions


def ups(lab_server: LabServer) -> int:
    """The number of `netlab up` processes that were started."""
    assert isinstance(lab_server.fake, FakeNetlab)
    return len(lab_server.fake.invocations("up"))


@contextmanager
def other_session(lab_server: LabServer) -> Iterator[str]:
    """A session that joins before those of the test, so that it is active."""
    session_id = httpx.post(f"{lab_server.url}/session", json={"client": "ann@office"}).json()["session_id"]
    try:
        yield session_id
    finally:
        httpx.delete(f"{lab_server.url}/session/{session_id}")


def start(project: pytest.Pytester, *arguments: str) -> Process:
    return run_pytest(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run_pytest(arguments: Sequence[str], *, stdout: Stream, stderr: Stream) -> Process:
    """Start pytest in the current directory, with an empty standard input."""
    places = filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return popen(Program.PYTEST, arguments, env=environment, stdout=stdout, stderr=stderr)


def fork_pytest(project: pytest.Pytester, patch: pytest.MonkeyPatch) -> None:
    """Let the project's `runpytest_subprocess` fork pytest instead of starting an interpreter."""
    executed = project.popen
    command = project._getpytestargs()

    # Older versions of pytest pass further options.
    def forked(words: Sequence[str], *, stdin: object, stdout: Stream, stderr: Stream, **options: Any) -> Any:
        if tuple(words[: len(command)]) == command and stdin is project.CLOSE_STDIN:
            return run_pytest(words[len(command) :], stdout=stdout, stderr=stderr)
        return executed(words, stdin=stdin, stdout=stdout, stderr=stderr, **options)  # type: ignore[arg-type]

    patch.setattr(project, "popen", forked)


def finish(process: Process) -> str:
    """Wait for the end of a run. Returns its output."""
    return process.communicate(timeout=60)[0].decode()


def collected(project: pytest.Pytester, *arguments: str) -> list[str]:
    """The names of the collected tests, in their order."""
    result = project.runpytest_subprocess("--collect-only", "-q", *arguments)
    return [line.split("::", 1)[1] for line in result.outlines if "::" in line]
