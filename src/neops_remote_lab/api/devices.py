"""Handlers for access to the devices of a session's running lab.

Refusals are raised as `Refused`, which `api.errors` maps to a status. The output of devices is passed on unchanged.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Final, NamedTuple

from pydantic import ValidationError
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from neops_remote_lab.api.device_connections import Close, CloseCode, join, refuse
from neops_remote_lab.api.requests import (
    active_caller,
    parse,
    read_body,
    refuse_while_draining,
    seconds,
    while_connected,
)
from neops_remote_lab.api.responses import escape
from neops_remote_lab.core.ports import LAST_PORT
from neops_remote_lab.labs.accesses import LabAccess, TooMany
from neops_remote_lab.labs.devices import Devices
from neops_remote_lab.labs.settings import DeviceSettings
from neops_remote_lab.models import ConsoleControlDto, ExecRequestDto
from neops_remote_lab.models.device import MAX_SIDE
from neops_remote_lab.netlab.node_commands import Completed
from neops_remote_lab.netlab.nodes import Node
from neops_remote_lab.netlab.terminals import Size

PIECE_LENGTH: Final = 64 * 1024
"""Characters of a command's output that are escaped at a time."""


async def execute(request: Request) -> Response:
    """Run a command in a device. The command is ended if the client disconnects."""
    services, session_id = await active_caller(request)
    refuse_while_draining(services)
    settings = services.settings.devices
    wanted = parse(ExecRequestDto, await read_body(request, settings.max_exec_request_bytes))
    with services.queue.open_call(session_id):
        completed = await while_connected(
            request,
            services.devices.execute(
                session_id,
                request.path_params["name"],
                wanted.words,
                stdin=wanted.input,
                seconds=_time_limit(wanted, settings),
            ),
        )
    pieces = _described(completed)
    if len(completed.stdout) + len(completed.stderr) <= PIECE_LENGTH:
        return Response(b"".join(pieces), media_type="application/json")
    return StreamingResponse(_leaving_turns(pieces), media_type="application/json")


def _time_limit(wanted: ExecRequestDto, settings: DeviceSettings) -> float:
    if wanted.timeout is None:
        return min(settings.exec_timeout, settings.max_exec_timeout)
    if wanted.timeout > settings.max_exec_timeout:
        limit = f"{settings.max_exec_timeout:g} s, the limit that --max-exec-timeout sets on the lab host"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=f"timeout is more than {limit}")
    return wanted.timeout


def _described(completed: Completed) -> Iterator[bytes]:
    """The JSON of an `ExecResponseDto`, in pieces: megabytes at once would stall the event loop."""
    yield b'{"exit_status":%d' % completed.exit_status
    for name, printed in (("stdout", completed.stdout), ("stderr", completed.stderr)):
        try:
            text = printed.decode()
        except UnicodeDecodeError:
            yield f',"{name}_base64":"'.encode()
            for start in range(0, len(printed), 3 * PIECE_LENGTH):  # a whole number of groups of three bytes
                yield base64.b64encode(printed[start : start + 3 * PIECE_LENGTH])
        else:
            yield f',"{name}":"'.encode()
            for start in range(0, len(text), PIECE_LENGTH):
                yield escape(json.dumps(text[start : start + PIECE_LENGTH])[1:-1].encode())
        yield b'"'
    yield b',"truncated":%b}' % (b"true" if completed.truncated else b"false")


async def _leaving_turns(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


async def forward(websocket: WebSocket) -> None:
    """Relay between a WebSocket and a TCP connection to a device."""
    port = _port(websocket.path_params["port"])
    async with _reaching(websocket) as reach:
        if reach:
            channel = await reach.devices.connect(reach.node, reach.name, port)
            await join(websocket, channel, cut=reach.access.cut, idle_timeout=reach.idle_timeout)


async def console(websocket: WebSocket) -> None:
    """Relay between a WebSocket and a program on a terminal in a device."""
    size = Size(_side(websocket, "columns", 80), _side(websocket, "rows", 24))
    words = _command(websocket.query_params.get("command"))
    async with _reaching(websocket) as reach:
        if reach:
            channel = await reach.devices.open_console(reach.access, reach.node, reach.name, words=words, size=size)

            def obey(text: str) -> Close | None:
                try:
                    wanted = ConsoleControlDto.model_validate_json(text)
                except ValidationError:
                    return Close(CloseCode.UNSUPPORTED, 'a text message is {"resize": [columns, rows]}')
                channel.terminal.resize(Size(*wanted.resize))
                return None

            await join(websocket, channel, cut=reach.access.cut, idle_timeout=reach.idle_timeout, on_text=obey)


class _Reach(NamedTuple):
    """The device that a WebSocket may access."""

    devices: Devices
    access: LabAccess
    name: str
    node: Node
    idle_timeout: float


@asynccontextmanager
async def _reaching(websocket: WebSocket) -> AsyncIterator[_Reach | None]:
    """A context that counts as a connection to a device and an open call of the session.

    Yields None, after refusing the WebSocket, if there are too many connections.
    """
    services, session_id = await active_caller(websocket)
    refuse_while_draining(services)
    devices, name = services.devices, websocket.path_params["name"]
    with services.queue.open_call(session_id), ExitStack() as holds:
        try:
            holds.enter_context(devices.connection(session_id))
        except TooMany as error:
            await refuse(websocket, Close(CloseCode.TRY_LATER, str(error)))
            yield None
            return
        node = await devices.node(session_id, name)
        access = holds.enter_context(devices.access(session_id))
        yield _Reach(devices, access, name, node, services.settings.devices.connection_idle_timeout)


def _side(websocket: WebSocket, name: str, default: int) -> int:
    side = seconds(websocket, name, default)
    if not (side == int(side) and 1 <= side <= MAX_SIDE):
        detail = f"the query parameter {name!r} must be a whole number from 1 to {MAX_SIDE}"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)
    return int(side)


def _command(text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        return ExecRequestDto(command=text).words
    except ValidationError as error:
        detail = f"the query parameter 'command': {error.errors()[0]['msg']}"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail) from None


def _port(text: str) -> int:
    if text.isascii() and text.isdecimal() and 0 < (port := int(text[:6])) <= LAST_PORT:
        return port
    detail = f"a TCP port is a number from 1 to {LAST_PORT}"
    raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)


async def upgrade_required(_request: Request) -> Response:
    """Refuse a plain HTTP request to a WebSocket path with 426."""
    detail = "this is a WebSocket: request it with `Connection: Upgrade` and `Upgrade: websocket`"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    raise HTTPException(status.HTTP_426_UPGRADE_REQUIRED, detail=detail, headers=headers)
