"""Commands and consoles in a device."""

import base64
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MAX_COMMAND_BYTES: Final = 96 * 1024
"""Maximum total length of a command and its arguments. Linux limits an argument to 128 KiB."""


def _passable(words: str | list[str]) -> str | list[str]:
    """Refuse commands that cannot be executed: with U+0000, too long, or with a hyphen at the beginning."""
    listed = [words] if isinstance(words, str) else words
    if any("\0" in word for word in listed):
        raise ValueError("a command cannot have the character U+0000")
    if len("\0".join(listed).encode()) > MAX_COMMAND_BYTES:
        raise ValueError(f"the command is longer than {MAX_COMMAND_BYTES} bytes")
    if isinstance(words, list) and words[0].startswith("-"):
        raise ValueError("the first word is the name of a program, which does not begin with a hyphen")
    return words


def _decoded(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("Input should be a valid string")
    return base64.b64decode(text, validate=True)


Command = Annotated[str | list[str], Field(min_length=1), AfterValidator(_passable)]

_BASE64: Final = {"contentEncoding": "base64"}
Base64Input = Annotated[
    bytes, BeforeValidator(_decoded, json_schema_input_type=str), WithJsonSchema({"type": "string", **_BASE64})
]
Base64Output = Annotated[str, Field(json_schema_extra=_BASE64)]


class ExecRequestDto(BaseModel):
    """A command to run in a device."""

    model_config = ConfigDict(extra="forbid")

    command: Command = Field(
        description="a string for the device's shell (sh), or a list with a program and its arguments, without a shell"
    )
    stdin: str | None = Field(default=None, description="standard input of the command, as UTF-8")
    stdin_base64: Base64Input | None = Field(default=None, description="standard input of the command, in Base64")
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
        """Standard input of the command."""
        return self.stdin.encode() if self.stdin is not None else self.stdin_base64 or b""

    @property
    def words(self) -> list[str]:
        """The command as a program with its arguments."""
        # `--`, because a command that begins with a hyphen would be an option of the shell.
        return ["sh", "-c", "--", self.command] if isinstance(self.command, str) else self.command


class ExecResponseDto(BaseModel):
    """The result of a command. Output that is not UTF-8 is in the field whose name ends in `_base64` instead."""

    exit_status: int = Field(description="exit status of the command; 128 plus the signal number if a signal ended it")
    stdout: str | None = Field(default=None, description="standard output")
    stdout_base64: Base64Output | None = Field(default=None, description="standard output, if it is not UTF-8")
    stderr: str | None = Field(default=None, description="standard error")
    stderr_base64: Base64Output | None = Field(default=None, description="standard error, if it is not UTF-8")
    truncated: bool = Field(default=False, description="true if the output exceeded the server's limit")


MAX_SIDE: Final = 65535
"""Maximum number of columns or rows of a terminal."""
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class ConsoleControlDto(BaseModel):
    """A text message of a client to a console."""

    model_config = ConfigDict(extra="forbid")

    resize: tuple[Side, Side] = Field(description="the new columns and rows of the terminal")
