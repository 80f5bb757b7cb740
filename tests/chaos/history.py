"""The input of the ledger: rows of the database, and the logs of the fake netlabs, after a run of several hosts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

from tests.chaos.journal import Fact
from tests.fakes import FakeNetlab
from tests.postgresql import connected

# Changes of hosts and events have numbers from one sequence, so they can be sorted together. A host is changed under a
# lock of its row, and each write for a host locks that row too.
AUDIT: Final = """
    CREATE TABLE host_change (
        number bigint PRIMARY KEY DEFAULT nextval('event_number_seq'),
        host text, state text, is_draining boolean, epoch bigint
    );
    CREATE FUNCTION note_host_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO host_change (host, state, is_draining, epoch)
        VALUES (NEW.name, NEW.state, NEW.is_draining, NEW.epoch);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_host_change AFTER INSERT OR UPDATE OF state, is_draining, epoch ON lab_host
    FOR EACH ROW EXECUTE FUNCTION note_host_change();
"""
"""A trigger that records the states of hosts, which are not part of the event table."""

EVENTS: Final = """
    SELECT number, xmin::text::bigint, what, session_id, lab_id, host, slot, code, detail,
           extract(epoch FROM at)::float
    FROM event ORDER BY number
"""
HOST_CHANGES: Final = "SELECT number, host, state, is_draining, epoch FROM host_change ORDER BY number"
SESSIONS: Final = """
    SELECT session_id, number, rank, state, extract(epoch FROM created_at)::float, extract(epoch FROM ended_at)::float,
           end_code
    FROM session
"""
REFERENCES: Final = """
    SELECT reference.session_id, idempotency_key, lab_id, extract(epoch FROM acquired_at)::float,
           extract(epoch FROM released_at)::float, host, outcome_code
    FROM lab_reference AS reference JOIN lab USING (lab_id)
"""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the event table."""

    number: int
    transaction: int
    what: str
    session_id: str | None = None
    lab_id: str | None = None
    host: str | None = None
    slot: int | None = None
    code: str | None = None
    detail: str | None = None
    at: float = 0.0
    """In seconds since the epoch, by the clock of its server."""


@dataclass(frozen=True, slots=True)
class HostChange:
    """A host's state after a change."""

    number: int
    host: str
    state: str
    is_draining: bool
    epoch: int


@dataclass(frozen=True, slots=True)
class SessionRow:
    """The final row of a session. Times are in seconds since the epoch."""

    session_id: str
    number: int
    rank: int
    state: str
    created_at: float
    ended_at: float | None = None
    end_code: str | None = None


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """The final row of a reference to a lab, with how the lab ended."""

    session_id: str
    key: str
    lab_id: str
    acquired_at: float
    released_at: float | None = None
    host: str = ""
    lab_code: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A `netlab up` on a host."""

    host: str
    lab_id: str


@dataclass
class History:
    """Everything that the ledger judges."""

    facts: list[Fact] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    host_changes: list[HostChange] = field(default_factory=list)
    sessions: list[SessionRow] = field(default_factory=list)
    references: list[ReferenceRow] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    collisions: list[str] = field(default_factory=list)
    """Reports of the fake netlabs about labs that were started beside others without being separate from them."""
    starting_in_advance: frozenset[str] = frozenset()
    """The hosts that start labs in advance."""

    def __str__(self) -> str:
        """One line per row, for debugging a violation."""
        rows = (*self.facts, *self.events, *self.host_changes, *self.sessions, *self.references, *self.starts)
        return "\n".join(map(str, (*rows, *self.collisions)))


def install_audit(database: str) -> None:
    """Install the trigger that records the states of hosts."""
    with connected(database) as connection:
        connection.execute(AUDIT)


def read_history(
    database: str, facts: list[Fact], fakes: Mapping[str, FakeNetlab], starting_in_advance: Iterable[str] = ()
) -> History:
    """Read the history of a run.

    Args:
        database: URL of the database.
        facts: what the clients and the test have recorded.
        fakes: the fake netlab of each host, by name.
        starting_in_advance: the names of the hosts that start labs in advance.
    """
    with connected(database) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query.encode()).fetchall()

        return History(
            facts,
            [Event(*row) for row in rows(EVENTS)],
            [HostChange(*row) for row in rows(HOST_CHANGES)],
            [SessionRow(*row) for row in rows(SESSIONS)],
            [ReferenceRow(*row) for row in rows(REFERENCES)],
            [start for name, fake in fakes.items() for start in _starts(name, fake.log())],
            [f"{name}: {line}" for name, fake in fakes.items() for line in fake.violations()],
            frozenset(starting_in_advance),
        )


def _starts(host: str, log: Iterable[dict[str, Any]]) -> list[Start]:
    ups = (line["cwd"] for line in log if line["event"] == "start" and line["argv"][1:2] == ["up"])
    return [Start(host, PurePath(directory).parent.name) for directory in ups]
