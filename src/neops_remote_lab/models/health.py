"""Health, readiness and errors."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field


class DebugHealthDto(BaseModel):
    """Figures for debugging a slow server."""

    status: Literal["ok"] = "ok"
    timestamp: datetime
    uptime: float = Field(ge=0, description="seconds since the server started")
    sessions: int = Field(ge=0, description="live sessions, waiting or active")
    queue_length: int = Field(ge=0, description="live sessions, the active one included")
    version: str = Field(description="version of the server")


class ReadyDto(BaseModel):
    """The host can start labs."""

    status: Literal["ready"] = "ready"


class ErrorDto(BaseModel):
    """The body of every error response."""

    detail: str | list[dict[str, Any]] = Field(description="what is wrong, and what to do about it")
