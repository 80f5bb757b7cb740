"""Sessions: joining the queue, and the position in it."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.text import refuse_unprintable

LABEL_LENGTH = 200
"""Maximum length of a client or purpose label, in characters."""
ONE_LINE_FORMAT: Final = "printable-line"
"""JSON Schema format of text that is printable in one line, as `core.text` defines it."""

Label = Annotated[
    str,
    Field(max_length=LABEL_LENGTH, json_schema_extra={"format": ONE_LINE_FORMAT}),
    AfterValidator(lambda text: refuse_unprintable("the label", text)),
]
"""Text that is displayed in terminals of other users, so it must be printable in one line."""


class CreateSessionRequestDto(BaseModel):
    """Labels of a session, which the queue shows to everyone. The whole body is optional."""

    model_config = ConfigDict(extra="forbid")

    client: Label | None = Field(
        default=None, description="who the session belongs to, for example user@host; one printable line"
    )
    purpose: Label | None = Field(
        default=None, description="what the session is for, for example the URL of a CI job; one printable line"
    )


class CreateSessionResponseDto(BaseModel):
    """A new session. It is stored durably before the response is sent."""

    session_id: str = Field(description="id of the session, to be sent in the header X-Session-ID")
    position: int = Field(ge=0, description="0: active; 1: next; and so on")


class SessionStatusResponseDto(BaseModel):
    """The state and the position of a session."""

    status: SessionState
    position: int = Field(ge=0, description="0: active; 1: next; and so on")
    eta_seconds: float | None = Field(
        default=None, description="estimated wait in seconds, from this host's history; null without history"
    )
    waiting_for: str | None = Field(default=None, description="who is active, with which topology, and since when")
    host: str | None = Field(default=None, description="lab host of an active session; null while it waits")
    slot: int | None = Field(default=None, description="slot of an active session on its host; null while it waits")


class ActiveSessionResponseDto(BaseModel):
    """The active session."""

    session_id: str = Field(description="the whole id for its owner, otherwise its first 8 characters")
    status: SessionState
    position: int = Field(ge=0)


class SessionInfoDto(BaseModel):
    """All data of a session. No route returns it; it exists for code that was written for 1.x."""

    id: str
    status: SessionState
    position: int
    created_at: float = Field(description="seconds since 1970")
    last_seen_at: float = Field(description="seconds since 1970")
    topology_name: str | None = None
