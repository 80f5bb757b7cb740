"""A user's project with lab fixtures, for tests of the pytest plugin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.fakes import FakeNetlab
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
    assert isinstance(lab_server.fake, FakeNetlab)
    return len(lab_server.fake.invocations("up"))


@contextmanager
def other_session(lab_server: LabServer) -> Iterator[str]:
    """Somebody else holds the lab host."""
    session_id = httpx.post(f"{lab_server.url}/session", json={"client": "ann@office"}).json()["session_id"]
    try:
        yield session_id
    finally:
        httpx.delete(f"{lab_server.url}/session/{session_id}")


def start(project: pytest.Pytester, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pytest", *arguments]
    process: subprocess.Popen[bytes] = project.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return process


def finish(process: subprocess.Popen[bytes]) -> str:
    output: bytes = process.communicate(timeout=60)[0]
    return output.decode()


def collected(project: pytest.Pytester, *arguments: str) -> list[str]:
    result = project.runpytest_subprocess("--collect-only", "-q", *arguments)
    return [line.split("::", 1)[1] for line in result.outlines if "::" in line]
