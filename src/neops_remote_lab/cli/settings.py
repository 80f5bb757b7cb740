"""Settings of the program: all server settings, and those of the client commands."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.client_settings import (
    ACQUISITION_TIMEOUT,
    REQUEST_TIMEOUT,
    SESSION_TIMEOUT,
    UNREACHABLE_TIMEOUT,
)
from neops_remote_lab.core.settings import PositiveSeconds, Seconds, SettingsGroup, variable

CLIENT_PREFIX: Final = "REMOTE_LAB_"


class ServerSettings(SettingsGroup, title="Server"):
    """Address, logging and shutdown of the server process."""

    host: str = Field(default="0.0.0.0", description="address to listen on")  # noqa: S104 - other machines are the users
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 takes a free one and logs it")
    debug: bool = Field(default=False, description="log everything")
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"] = Field(default="INFO", description="log level")
    log_config: Path | None = Field(
        default=None, description="logging configuration file for uvicorn: .ini, .json or .yaml"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="text, or one JSON object per line; ignored with `--log-config`"
    )
    umask: str = Field(
        default="077",
        pattern="^0?0[0-7]{2}$",
        description="umask of the database and the work directory, in octal: 027 lets the group read them",
    )
    lock_timeout: Seconds = Field(
        default=1,  # a program that a killed server was about to start has the locks until it runs
        description="seconds to wait at the start for the locks of a server that has just ended",
    )
    exit_timeout: PositiveSeconds = Field(
        default=120, description="seconds that a graceful shutdown may take, including the teardown"
    )


class Settings(SettingsGroup):
    """All settings of the server."""

    server: ServerSettings
    service: ServiceSettings


def server_url(environment: Mapping[str, str] = os.environ) -> str:
    """The default server of the client commands: REMOTE_LAB_URL, or the server on this host."""
    port = environment.get(variable("port")) or ServerSettings.model_fields["port"].default
    return environment.get("REMOTE_LAB_URL") or f"http://127.0.0.1:{port}"


class ClientSettings(BaseModel):
    """Settings of the client commands. `like_this` is read from the variable `REMOTE_LAB_LIKE_THIS`."""

    model_config = ConfigDict(frozen=True)

    url: str | None = Field(default=None, repr=False)
    session: str | None = None
    session_id: str | None = Field(default=None, repr=False)
    request_timeout: PositiveSeconds = REQUEST_TIMEOUT
    session_timeout: PositiveSeconds = SESSION_TIMEOUT
    acquisition_timeout: PositiveSeconds = ACQUISITION_TIMEOUT
    unreachable_timeout: PositiveSeconds = UNREACHABLE_TIMEOUT
    access: Literal["direct", "forward"] = "direct"

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the variables. An empty variable counts as not set.

        Raises:
            ValueError: a value is wrong; the message names the variable.
        """
        names = {field: f"{CLIENT_PREFIX}{field.upper()}" for field in cls.model_fields}
        given = {field: environment[name] for field, name in names.items() if environment.get(name)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problem = error.errors()[0]
            field = str(problem["loc"][0])
            raise ValueError(f"{names[field]}: {problem['msg']}, not {given[field]!r}") from None
