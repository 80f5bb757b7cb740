"""Health, readiness and errors."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field


class DebugHealthDto(BaseModel):
    """Numbers to look at when the server seems slow."""

    status: Literal["ok"] = "ok"
    timestamp: datetime
    uptime: float = Field(ge=0, description="seconds since the server started")
    sessions: int = Field(ge=0, description="live sessions, waiting or active")
    queue_length: int = Field(ge=0, description="live sessions, the active one included")


class ReadyDto(BaseModel):
    """The host can take a lab."""

    status: Literal["ready"] = "ready"


class ErrorDto(BaseModel):
    """Any answer that is not a success."""

    detail: str | list[dict[str, Any]] = Field(description="what is wrong and what to do about it")
