"""Handlers of the lab: acquire, status, devices, log, artifacts, release, destroy, topology check.

The lab refuses calls with `Refused`, which `api.errors` maps to a status. Each call on the lab renews its session. The
status is 404 if the session is not live, and 423 if it is not active.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import IO, Final

from pydantic import TypeAdapter
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from neops_remote_lab.api import uploads
from neops_remote_lab.api.log_stream import SHUTTING_DOWN, HeldResponse
from neops_remote_lab.api.requests import (
    active_caller,
    idempotency_key,
    not_live,
    refuse_while_draining,
    services_of,
    session_header,
    while_connected,
)
from neops_remote_lab.api.responses import json_response
from neops_remote_lab.api.services import Services
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Upload
from neops_remote_lab.models import (
    DeviceInfoDto,
)

CHUNK_BYTES: Final = 256 << 10
"""Chunk size for sending an archive."""
_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])


async def acquire_lab(request: Request) -> Response:
    """Acquire the lab: 200 when it is running, or 202 at once with `Prefer: respond-async`.

    If the client disconnects, the start continues, and the session's next acquire of the same topology gets the lab.
    """
    services, session_id = await active_caller(request)
    refuse_while_draining(services)
    key = idempotency_key(request)
    with services.queue.open_call(session_id):
        upload = await _upload(request, services)
        lab = services.slots.of(session_id)
        if "respond-async" in request.headers.get("Prefer", "").lower():
            await lab.acquire_in_background(session_id, upload, key)
            headers = {"Location": "/lab", "Preference-Applied": "respond-async"}
            return Response(status_code=status.HTTP_202_ACCEPTED, headers=headers)
        return json_response(await while_connected(request, lab.acquire(session_id, upload, key)))


async def _upload(request: Request, services: Services) -> Upload:
    return await uploads.receive(
        request.headers.get("Content-Type", ""),
        request.stream(),
        services.settings.uploads,
        services.run_blocking,
        work_dir=services.settings.netlab.work_dir,
        lab_host=services.settings.netlab.lab_host,
    )


async def get_lab(request: Request) -> Response:
    """The state of the session's lab, which may be `none`.

    After a restart of the server, the call waits until the labs of the earlier server are adopted or removed.
    """
    services, session_id = await active_caller(request)
    return json_response(await services.slots.of(session_id).status(session_id))


async def list_devices(request: Request) -> Response:
    """The devices of the running lab, as read during its start; 404 without a lab."""
    services, session_id = await active_caller(request)
    return json_response(_DEVICES.dump_json(await services.slots.of(session_id).devices(session_id)))


async def get_log(request: Request) -> Response:
    """The log of the lab, or of the latest lab if that failed: as text, or as server-sent events until the lab ends.

    With `Last-Event-ID`, events have ids, and the stream continues after that event. 429 or 503 with `Retry-After` if
    there are too many readers.
    """
    services, session_id = await active_caller(request)
    lab = services.slots.of(session_id)
    if (log := lab.log(session_id) or await lab.failed_log(session_id)) is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, detail="no lab is running, and none failed, so there is no log")
    holds = _reading(services, session_id)
    if "text/event-stream" not in request.headers.get("Accept", ""):
        return HeldResponse(services.log_streams.text(log), holds, media_type="text/plain")

    def ending() -> str | None:
        if services.queue.draining:
            return SHUTTING_DOWN
        return None if lab.log(session_id) == log else ""

    events = services.log_streams.events(log, ending, request.headers.get("Last-Event-ID"))
    return HeldResponse(events, holds, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@contextmanager
def _reading(services: Services, session_id: str) -> Iterator[None]:
    with services.log_streams.place(session_id), services.queue.open_call(session_id):
        yield


async def get_artifacts(request: Request) -> Response:
    """The artifact archive of the running lab, or of the latest lab if that failed; 404 without either."""
    services, session_id = await active_caller(request)
    refuse_while_draining(services)
    with services.queue.open_call(session_id):
        archive = await while_connected(request, services.slots.of(session_id).artifacts(session_id))
    headers = {
        "Content-Length": str(archive.seek(0, os.SEEK_END)),
        "Content-Disposition": 'attachment; filename="remote-lab-artifacts.tar.gz"',
        "Cache-Control": "no-store",
    }
    archive.seek(0)
    # The archive is complete, so it can be sent even if the lab ends meanwhile.
    chunks, holds = _chunks(archive, services.run_blocking), _sending(services, session_id, archive)
    return HeldResponse(chunks, holds, media_type="application/gzip", headers=headers)


async def _chunks(file: IO[bytes], run_blocking: RunBlocking) -> AsyncGenerator[bytes]:
    while chunk := await run_blocking(file.read, CHUNK_BYTES):
        yield chunk


@contextmanager
def _sending(services: Services, session_id: str, file: IO[bytes]) -> Iterator[None]:
    with file, services.queue.open_call(session_id):
        yield


async def release_lab(request: Request) -> Response:
    """Release the reference with the idempotency key, or the newest one. Does not wait for the teardown."""
    services, session_id = await active_caller(request)
    await services.slots.of(session_id).release(session_id, idempotency_key(request))
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def destroy_lab(request: Request) -> Response:
    """Begin a teardown: 202 if it has begun, 204 if there is no lab, 409 if the lab is in use and `force` is false."""
    services, session_id = await active_caller(request)
    force = uploads.boolean("the query parameter 'force'", request.query_params.get("force", "true"))
    begun = await services.slots.of(session_id).destroy(session_id, force=force)
    return Response(status_code=status.HTTP_202_ACCEPTED if begun else status.HTTP_204_NO_CONTENT)


async def check_topology(request: Request) -> Response:
    """Check a topology with netlab and return the number of its nodes and links. Waiting sessions may call it too.

    404 if the session is not live; 409 if the session becomes active before the check begins.
    """
    services, session_id = services_of(request), session_header(request)
    await services.queue.learn(session_id)
    if services.queue.place(session_id) is None:
        raise await not_live(services, session_id)
    refuse_while_draining(services)
    was_waiting = not services.queue.is_active(session_id)
    with services.queue.open_call(session_id):
        upload = await _upload(request, services)
        check = asyncio.ensure_future(services.checks.check(session_id, upload))
        if was_waiting:
            # Once the session is active it needs its lab, and POST /lab checks the topology too.
            turn = asyncio.ensure_future(services.queue.wait_until_active(session_id))
            await asyncio.wait([check, turn], return_when=asyncio.FIRST_COMPLETED)
            turn.cancel()
            if services.queue.is_active(session_id):  # otherwise it has ended, or the server is shutting down
                services.checks.give_up(session_id)
        return json_response(await check)
