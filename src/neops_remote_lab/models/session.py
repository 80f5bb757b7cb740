"""Sessions: joining the queue and asking for one's place in it."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.text import refuse_unprintable

LABEL_LENGTH = 200
"""Longest client or purpose label, in characters."""
ONE_LINE_FORMAT: Final = "printable-line"
"""JSON Schema format of a text that is printable in one line; `core.text` says what that is."""

Label = Annotated[
    str,
    Field(max_length=LABEL_LENGTH, json_schema_extra={"format": ONE_LINE_FORMAT}),
    AfterValidator(lambda text: refuse_unprintable("the label", text)),
]
"""A text that others see in a terminal: printable in one line."""


class CreateSessionRequestDto(BaseModel):
    """Who asks, as the queue shows it to others. The whole body is optional."""

    model_config = ConfigDict(extra="forbid")

    client: Label | None = Field(default=None, description="who asks, for example user@host; printable, in one line")
    purpose: Label | None = Field(
        default=None, description="what for, for example a CI job's address; printable, in one line"
    )


class CreateSessionResponseDto(BaseModel):
    """A place in the queue, durable before it is answered."""

    session_id: str = Field(description="name of the session, to be sent as X-Session-ID")
    position: int = Field(ge=0, description="0: active; 1: next; and so on")


class SessionStatusResponseDto(BaseModel):
    """A session's place in the queue."""

    status: SessionState
    position: int = Field(ge=0, description="0: active; 1: next; and so on")
    eta_seconds: float | None = Field(
        default=None, description="expected wait in seconds, from this host's own history; null where there is none"
    )
    waiting_for: str | None = Field(default=None, description="who holds the lab, with what, since when")


class ActiveSessionResponseDto(BaseModel):
    """The session that holds the lab host."""

    session_id: str = Field(description="whole for its owner, else the first 8 characters")
    status: SessionState
    position: int = Field(ge=0)


class SessionInfoDto(BaseModel):
    """All about one session. No call answers it; code that was written for 1.x may build it."""

    id: str
    status: SessionState
    position: int
    created_at: float = Field(description="seconds since 1970")
    last_seen_at: float = Field(description="seconds since 1970")
    topology_name: str | None = None
