"""The queue as everybody may see it."""

from pydantic import BaseModel, Field

from neops_remote_lab.core.codes import SessionState


class QueueEntryDto(BaseModel):
    """One session of the queue, without what only its owner may know."""

    session_id: str = Field(description="the first 8 characters")
    position: int = Field(ge=0)
    status: SessionState
    client: str | None = None
    purpose: str | None = None
    age_seconds: float = Field(ge=0, description="since the session joined")
    active_seconds: float | None = Field(default=None, ge=0, description="since it became active")
    last_seen_seconds: float = Field(ge=0, description="since its last call")
    topology: str | None = Field(default=None, description="file name of the topology that it runs")


class QueueDto(BaseModel):
    """Everybody who waits or holds the lab, in order."""

    length: int = Field(ge=0)
    quarantined: str | None = Field(default=None, description="why nobody is made active, while that is so")
    sessions: list[QueueEntryDto]
