"""Fixtures for every kind of test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nursery import Nursery
from tests.server import LabServer, running_server


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    """Servers are forked from one process, unless coverage must see each of them begin."""
    if any(name.startswith("COVERAGE_PROCESS") for name in os.environ):
        yield
        return
    Nursery.current = Nursery()
    yield
    Nursery.current.close()


@pytest.fixture
def lab_server(tmp_path: Path) -> Iterator[LabServer]:
    """A real server process, with a fake netlab behind it."""
    with running_server(tmp_path) as server:
        yield server
