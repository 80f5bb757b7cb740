"""Fixtures for every kind of test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import LabServer, running_server


@pytest.fixture
def lab_server(tmp_path: Path) -> Iterator[LabServer]:
    """A real server process, with a fake netlab behind it."""
    with running_server(tmp_path) as server:
        yield server
