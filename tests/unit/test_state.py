"""State files of sessions, which later commands use."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from neops_remote_lab.client.exceptions import InvalidSetting
from neops_remote_lab.client.state import KeptSession, ProcessRecord, StateDirectory

URL = "http://lab-host:8000"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def session(session_id: str = "0123456789abcdef", **fields: object) -> KeptSession:
    return KeptSession.model_validate({"url": URL, "session_id": session_id, "kept_since": NOW, **fields})


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state" / "sessions")


def test_a_session_is_found_by_its_server_and_its_name(state: StateDirectory) -> None:
    first, second = session(), session("fedcba9876543210", name="second", topology="/labs/ospf.yml")
    state.save(first)
    state.save(second)
    assert state.find(URL) == first
    assert state.find(URL, "second") == second
    assert state.find("http://lab-host:8001") is None
    assert list(state) == [first, second]


def test_a_state_file_is_private_regardless_of_the_umask(state: StateDirectory) -> None:
    before = os.umask(0)
    try:
        state.save(session())
    finally:
        os.umask(before)
    assert stat.S_IMODE(state.path(URL).stat().st_mode) == 0o600
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700


def test_a_session_that_has_replaced_another_one_is_not_forgotten(state: StateDirectory) -> None:
    old, new = session(), session("fedcba9876543210")
    state.save(old)
    state.save(new)
    state.forget(old)
    assert state.find(URL) == new
    state.forget(new)
    state.forget(new)
    assert state.find(URL) is None


@pytest.mark.parametrize("text", ["", "{", '{"version": 2}', "\xff", "[]"])
def test_a_file_of_another_version_is_ignored(state: StateDirectory, text: str) -> None:
    state.save(session())
    state.path(URL).write_bytes(text.encode("latin-1"))
    assert state.find(URL) is None
    assert list(state) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-a", ".a", "a" * 65, "a\n"])
def test_a_name_that_is_not_valid_for_a_file_is_refused(state: StateDirectory, name: str) -> None:
    with pytest.raises(InvalidSetting, match="is not a valid name for a session"):
        state.find(URL, name)


def test_the_session_id_is_not_shown() -> None:
    assert "0123456789abcdef" not in repr(session())


def test_a_process_differs_from_a_later_one_with_the_same_pid() -> None:
    mine = ProcessRecord.of()
    found = mine.find()
    assert found is not None
    assert found.pid == os.getpid()
    assert ProcessRecord(pid=mine.pid, started=mine.started - 60).find() is None


def test_a_process_that_has_ended_is_not_found() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = ProcessRecord.of(child.pid)
    assert record.find() is not None
    child.kill()
    while record.find() is not None:  # a zombie counts as ended
        pass
    child.communicate()
    assert record.find() is None
