"""A record of the responses that clients got and of the faults of servers, in order."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class FactKind(StrEnum):
    """The kind of a fact. Responses are recorded on arrival; requests and faults before they are sent or injected."""

    JOINED = "joined"
    ACTIVE = "active"
    ACQUIRED = "acquired"
    RELEASING = "releasing"
    RELEASED = "released"
    LEAVING = "leaving"
    LEFT = "left"
    ENDED = "ended"
    """A response said that the session has ended, although its client has not ended it."""
    CHECKED = "checked"
    """A topology was checked while its session waited."""
    STREAMED = "streamed"
    """An event stream has delivered a line of a lab's log. `key` is the id of the lab."""
    CONSOLE_OPENED = "console opened"
    HUNG = "hung"
    """A call that should have ended long ago. `key` says which."""
    UNEXPECTED = "unexpected"
    """An answer that no client may get, or the end of a server that nobody has ended."""
    OPERATOR_ENDS = "operator ends"
    KILLED = "killed"
    """A server was killed. `session_id` is the name of its host."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry."""

    what: FactKind
    session_id: str
    key: str = ""
    """The idempotency key of an acquire, or the text of an unexpected answer."""
    asked: float = 0.0
    """When the first attempt of the call was sent, in seconds since the epoch."""
    at: float = field(default_factory=time.time)
    """When it was recorded."""


class Journal:
    """A list of facts that only grows. One thread records them, others may read."""

    def __init__(self) -> None:
        self._facts: list[Fact] = []

    def note(self, what: FactKind, session_id: str, key: str = "", asked: float = 0.0) -> None:
        """Record a fact."""
        self._facts.append(Fact(what, session_id, key, asked or time.time()))

    def facts(self, *kinds: FactKind) -> list[Fact]:
        """The facts of these kinds so far, in order; without kinds all facts."""
        return [fact for fact in list(self._facts) if not kinds or fact.what in kinds]

    def sessions(self, what: FactKind) -> set[str]:
        """The sessions with a fact of a kind."""
        return {fact.session_id for fact in self.facts(what)}

    def keys(self, what: FactKind) -> set[str]:
        """The keys of the facts of a kind."""
        return {fact.key for fact in self.facts(what)}

    def __str__(self) -> str:
        count = Counter(fact.what for fact in self.facts())
        return ", ".join(f"{count[what]} {what}" for what in (FactKind.JOINED, FactKind.ACQUIRED, FactKind.LEFT))
