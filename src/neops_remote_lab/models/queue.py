"""The queue as everybody may see it."""

from pydantic import BaseModel, Field

from neops_remote_lab.core.codes import SessionState


class QueueEntryDto(BaseModel):
    """One session of the queue, without what only its owner may know."""

    session_id: str = Field(description="the first 8 characters of the session's id")
    position: int = Field(ge=0, description="0: active; 1: next; and so on")
    status: SessionState = Field(description="`active` or `waiting`")
    client: str | None = Field(default=None, description="who asks; null where nobody said")
    purpose: str | None = Field(default=None, description="what for; null where nobody said")
    age_seconds: float = Field(ge=0, description="seconds since the session joined")
    active_seconds: float | None = Field(default=None, ge=0, description="seconds since it became active; null before")
    last_seen_seconds: float = Field(ge=0, description="seconds since its last call")
    topology: str | None = Field(default=None, description="file name of the topology of its lab; null without one")


class QueueDto(BaseModel):
    """Everybody who waits or holds the lab, in order."""

    length: int = Field(ge=0, description="live sessions, those included that are not listed")
    quarantined: str | None = Field(default=None, description="why no session is admitted; null where they are")
    sessions: list[QueueEntryDto] = Field(description="the active session, then those that wait, in order")
