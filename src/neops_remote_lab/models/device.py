"""Commands in a device."""

import base64
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_COMMAND_BYTES: Final = 96 * 1024
"""Longest command, its arguments together: one of 128 KiB would be too long for Linux."""


def _passable(words: str | list[str]) -> str | list[str]:
    """Raise ValueError for what no program can be given, or what would not be one."""
    listed = [words] if isinstance(words, str) else words
    if any("\0" in word for word in listed):
        raise ValueError("a command cannot have the character U+0000")
    if len("\0".join(listed).encode()) > MAX_COMMAND_BYTES:
        raise ValueError(f"the command is longer than {MAX_COMMAND_BYTES} bytes")
    if isinstance(words, list) and words[0].startswith("-"):
        raise ValueError("the first word is the name of a program, which does not begin with a hyphen")
    return words


def _decodable(text: str) -> str:
    base64.b64decode(text, validate=True)
    return text


Command = Annotated[str | list[str], Field(min_length=1), AfterValidator(_passable)]

Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"}), AfterValidator(_decodable)]


class ExecRequestDto(BaseModel):
    """A command that is to run in a device."""

    model_config = ConfigDict(extra="forbid")

    command: Command = Field(
        description="a string, which the device's shell (sh) runs, or a program with its arguments, which it does not"
    )
    stdin: str | None = Field(default=None, description="what the command reads from its standard input, as UTF-8")
    stdin_base64: Base64 | None = Field(default=None, description="the same in Base64")
    timeout: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="seconds after which the command is ended"
    )

    @model_validator(mode="after")
    def _has_one_input(self) -> "ExecRequestDto":
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("stdin and stdin_base64 exclude each other")
        return self

    @property
    def input(self) -> bytes:
        """What the command reads."""
        return self.stdin.encode() if self.stdin is not None else base64.b64decode(self.stdin_base64 or "")

    @property
    def words(self) -> list[str]:
        """The command as a program with its arguments."""
        # Without the two hyphens a command that begins with one would be an option of the shell.
        return ["sh", "-c", "--", self.command] if isinstance(self.command, str) else self.command


class ExecResponseDto(BaseModel):
    """A command that has ended. An output that is not UTF-8 is in the field whose name ends in `_base64` instead."""

    exit_status: int = Field(description="128 and more: a signal has ended it")
    stdout: str | None = Field(default=None, description="its standard output")
    stdout_base64: Base64 | None = Field(default=None, description="the same, where it is not UTF-8")
    stderr: str | None = Field(default=None, description="its standard error")
    stderr_base64: Base64 | None = Field(default=None, description="the same, where it is not UTF-8")
    truncated: bool = Field(default=False, description="true when it printed more than the server keeps")


Side = Annotated[int, Field(ge=1, le=65535)]


class ConsoleControlDto(BaseModel):
    """A text message of a client to a console."""

    model_config = ConfigDict(extra="forbid")

    resize: tuple[Side, Side] = Field(description="the columns and rows of the terminal from now on")
