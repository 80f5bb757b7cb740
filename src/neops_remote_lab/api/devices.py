"""The handlers that reach into the devices of a session's running lab.

A refusal is a `Refused`, for which `api.errors` has the status. What a device prints goes on as it is.
"""

import base64
from typing import Any

from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from neops_remote_lab.api.requests import active_caller, parse, read_body, refuse_while_draining, while_connected
from neops_remote_lab.api.responses import json_response
from neops_remote_lab.labs.settings import DeviceSettings
from neops_remote_lab.models import ExecRequestDto, ExecResponseDto
from neops_remote_lab.netlab.node_commands import Completed


async def execute(request: Request) -> Response:
    """Run a command in a device. A client that goes away ends it."""
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
        # Megabytes of text would stall the event loop for as long as they are searched and escaped.
        return json_response(await services.run_blocking(_described, completed))


def _time_limit(wanted: ExecRequestDto, settings: DeviceSettings) -> float:
    if wanted.timeout is None:
        return min(settings.exec_timeout, settings.max_exec_timeout)
    if wanted.timeout > settings.max_exec_timeout:
        limit = f"{settings.max_exec_timeout:g} s, the limit that --max-exec-timeout sets on the lab host"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=f"timeout is more than {limit}")
    return wanted.timeout


def _described(completed: Completed) -> bytes:
    fields: dict[str, Any] = {"exit_status": completed.exit_status}
    for name, printed in (("stdout", completed.stdout), ("stderr", completed.stderr)):
        try:
            fields[name] = printed.decode()
        except UnicodeDecodeError:
            fields[f"{name}_base64"] = base64.b64encode(printed).decode()
    described = ExecResponseDto(**fields, truncated=completed.truncated)
    return described.model_dump_json(exclude_none=True).encode()
