"""Sessions that are active on the host of another server, for tests with two servers and two SQLite databases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.shell import sql
from tests.fakes import wait_until
from tests.server import LabServer


@contextmanager
def active_elsewhere(front: LabServer, session_id: str, address: str) -> Iterator[str]:
    """A session that is active on another host of the queue.

    Args:
        front: the server whose database gets the session and the host.
        address: URL of the other host's server.
    """
    host = f"host-of-{session_id}"
    now = "2026-01-01 12:00:00.000000"
    sql(front.database, "INSERT INTO lab_host (name, queue, address) VALUES (?, 'default', ?)", host, address)
    sql(
        front.database,
        "INSERT INTO session (session_id, queue, rank, state, host, slot, created_at, activated_at, last_seen_at) "
        "VALUES (?, 'default', 0, 'active', ?, 1, ?, ?, ?)",
        *(session_id, host, now, now, now),
    )
    wait_until(lambda: has_session(front, session_id), message="the server has not read its database")
    yield session_id
    sql(front.database, "DELETE FROM session WHERE session_id = ?", session_id)
    sql(front.database, "DELETE FROM lab_host WHERE name = ?", host)
    wait_until(lambda: not has_session(front, session_id))


def has_session(front: LabServer, session_id: str) -> bool:
    """Whether a server reports a session."""
    with front.client() as client:
        return client.get(f"/session/{session_id}").status_code == 200
