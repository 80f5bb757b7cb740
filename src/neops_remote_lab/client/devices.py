"""Commands in devices of a lab."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx

from neops_remote_lab.client.answers import detail_of, parsed
from neops_remote_lab.client.session import Session
from neops_remote_lab.models.device import ExecResponseDto
from neops_remote_lab.models.lab import DeviceInfoDto, DevicesDto

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

EXEC_TIMEOUT: Final = 60.0
"""Seconds that a command may take."""


@dataclass(frozen=True)
class ExecResult:
    """The result of a command.

    Attributes:
        exit_status: exit status of the command; 128 plus the signal number if a signal ended it.
        stdout: standard output.
        stderr: standard error.
        truncated: whether the output exceeded the server's limit and was cut.
    """

    exit_status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


def path_of(device: str | DeviceInfoDto, what: str) -> str:
    """The path of a call on a device."""
    name = device if isinstance(device, str) else device.name
    return f"/lab/devices/{quote(name, safe='')}/{what}"


def devices_of(session: Session) -> list[DeviceInfoDto]:
    """The devices of the running lab. Raises as `Session.ask`."""
    return _devices(session).root


def require_device(session: Session, name: str) -> DeviceInfoDto:
    """The device with a name.

    Raises:
        LookupError: the lab has no such device.
        The exceptions of `Session.ask`.
    """
    return _devices(session).named(name)


def execute(
    session: Session,
    device: str | DeviceInfoDto,
    command: str | Sequence[str],
    *,
    stdin: bytes,
    timeout: float,
    until: float,
) -> ExecResult:
    """Run a command in a device. The request is never sent twice.

    Args:
        session: the session that the lab belongs to.
        device: the device or its name.
        command: a string for the device's shell, or a program with its arguments.
        stdin: standard input of the command.
        timeout: seconds after which the command is ended.
        until: time on the connection's clock until which to wait for the response.

    Raises:
        TimeoutError: the command did not end in time.
        SessionEnded: the server ended the session.
        httpx.HTTPStatusError: the server refused.
        httpx.TransportError: the server could not be reached, or the connection broke off.
    """
    body: dict[str, Any] = {"command": command if isinstance(command, str) else list(command), "timeout": timeout}
    if stdin:
        body["stdin_base64"] = base64.b64encode(stdin).decode()
    try:
        response = session.ask("POST", path_of(device, "exec"), until=until, slow=True, once=True, json=body)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.REQUEST_TIMEOUT:
            raise TimeoutError(detail_of(error.response)) from error
        raise
    done = parsed(response, ExecResponseDto)
    return ExecResult(
        done.exit_status,
        _bytes(done.stdout, done.stdout_base64),
        _bytes(done.stderr, done.stderr_base64),
        done.truncated,
    )


def _devices(session: Session) -> DevicesDto:
    return parsed(session.ask("GET", "/lab/devices"), DevicesDto)


def _bytes(text: str | None, encoded: str | None) -> bytes:
    return base64.b64decode(encoded) if encoded is not None else (text or "").encode()
