"""The public view of the queue."""

from pydantic import BaseModel, Field

from neops_remote_lab.core.codes import HostState, SessionState


class QueueEntryDto(BaseModel):
    """One session of the queue, without its whole id."""

    session_id: str = Field(description="the first 8 characters of the session's id")
    position: int = Field(ge=0, description="0: active; 1: next; and so on")
    status: SessionState = Field(description="`active` or `waiting`")
    client: str | None = Field(default=None, description="who the session belongs to; null if not given")
    purpose: str | None = Field(default=None, description="what the session is for; null if not given")
    age_seconds: float = Field(ge=0, description="seconds since the session joined")
    active_seconds: float | None = Field(default=None, ge=0, description="seconds since it became active; null before")
    last_seen_seconds: float = Field(ge=0, description="seconds since its last call")
    topology: str | None = Field(default=None, description="file name of the topology of its lab; null without one")
    host: str | None = Field(default=None, description="lab host of an active session; null while it waits")
    slot: int | None = Field(default=None, description="slot of an active session on its host; null while it waits")


class QueueHostDto(BaseModel):
    """A lab host that serves the queue."""

    name: str = Field(description="name of the host, `--lab-host`")
    state: HostState = Field(
        default=HostState.LIVE, description="`live`; `silent` or `gone` if its server shows no sign of life"
    )
    draining: bool = Field(default=False, description="true if an operator lets no further session become active on it")
    holds_grants: bool = Field(
        default=False,
        description="true while a lab waits for memory of the host: no further session becomes active on it",
    )
    slots: int = Field(ge=0, description="number of sessions that can be active at once")
    active: int = Field(ge=0, description="number of active sessions")
    quarantined: str | None = Field(
        default=None, description="why no session is admitted; null if the host is not quarantined"
    )


class QueueDto(BaseModel):
    """The active sessions and the waiting ones, in order."""

    length: int = Field(ge=0, description="number of live sessions, including those that are not listed")
    quarantined: str | None = Field(
        default=None, description="why no session is admitted; null if the host is not quarantined"
    )
    sessions: list[QueueEntryDto] = Field(description="the active sessions, then the waiting ones, in order")
    hosts: list[QueueHostDto] = Field(default=[], description="the lab hosts that serve the queue")
