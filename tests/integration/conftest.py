"""Fixtures for labs without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeNetlab, install_fake_netlab


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNetlab:
    """A fake lab host, whose programs this process runs."""
    fake = install_fake_netlab(tmp_path / "host")
    for name in ("PATH", "HOME", "FAKE_NETLAB_STATE"):
        monkeypatch.setenv(name, fake.environment()[name])
    return fake


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "work_dir": tmp_path / "labs",
        "lock_dir": tmp_path / "locks",
        "lab_network": "10.197.0.0/16",  # no real lab of this machine uses it
        "host_root": tmp_path / "host" / "state" / "system",
        "acquire_poll": 0.05,
        "kill_grace": 0.2,
        "teardown_retries": 1,
    }
