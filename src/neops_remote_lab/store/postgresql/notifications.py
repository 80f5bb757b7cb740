"""Collects what other programs change, from the notifications that triggers of the schema send."""

from typing import Final

from neops_remote_lab.store.rows import Changes

CHANNEL: Final = "neops_remote_lab"
"""On which the triggers notify."""
MOST_SESSIONS: Final = 1000
"""If more sessions than these have changed, it is cheaper to read all of them than to look each one up."""


class ForeignChanges:
    """The changes since the latest look."""

    def __init__(self) -> None:
        self._sessions: set[str] | None = set()
        self._hosts = False

    def add(self, payload: str) -> None:
        """Add what a notification says: `session ID`, `hosts`, or anything else for any change."""
        kind, _, session_id = payload.partition(" ")
        if kind == "hosts":
            self._hosts = True
        elif kind != "session":
            self.add_any()
        elif self._sessions is not None:
            self._sessions.add(session_id)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions = None

    def add_any(self) -> None:
        """Add that anything may have changed."""
        self._sessions, self._hosts = None, True

    def take(self) -> Changes:
        """Return the changes, and begin anew."""
        changes = Changes(None if self._sessions is None else frozenset(self._sessions), self._hosts)
        self._sessions, self._hosts = set(), False
        return changes
