"""The handlers of the lab: acquire, look, release, destroy, and check a topology.

A refusal of the lab is a `Refused`, for which `api.errors` has the status. Each call on the lab renews its session;
it is 404 for one that is not live, and 423 for one that is not active.
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
from neops_remote_lab.api.log_stream import HeldResponse
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
"""So much of an archive is read at a time."""
_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])


async def acquire_lab(request: Request) -> Response:
    """Wait until the lab is up, however long that takes, unless `Prefer: respond-async` asks for 202 at once.

    A client that goes away leaves the start to the session, whose next acquire of the same topology gets the lab.
    """
    services, session_id = await active_caller(request)
    refuse_while_draining(services)
    key = idempotency_key(request)
    with services.queue.open_call(session_id):
        upload = await _upload(request, services)
        if "respond-async" in request.headers.get("Prefer", "").lower():
            await services.labs.acquire_in_background(session_id, upload, key)
            headers = {"Location": "/lab", "Preference-Applied": "respond-async"}
            return Response(status_code=status.HTTP_202_ACCEPTED, headers=headers)
        return json_response(await while_connected(request, services.labs.acquire(session_id, upload, key)))


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
    """The state of the lab, `none` included, with what `netlab status` says of it. After a restart of the server it
    waits until that has taken over or removed what was there.
    """
    services, session_id = await active_caller(request)
    return json_response(await services.labs.status(session_id))


async def list_devices(request: Request) -> Response:
    """The devices as they were read when the lab came up; 404 without a lab."""
    services, session_id = await active_caller(request)
    return json_response(_DEVICES.dump_json(await services.labs.devices(session_id)))


async def get_log(request: Request) -> Response:
    """The log of the lab, or of the last one that failed: as it is, or as events until the lab is gone.

    429 and 503 with `Retry-After` where it has too many readers.
    """
    services, session_id = await active_caller(request)
    if (log := services.labs.log(session_id) or await services.labs.failed_log(session_id)) is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, detail="no lab is running, and none failed, so there is no log")
    holds = _reading(services, session_id)
    if "text/event-stream" not in request.headers.get("Accept", ""):
        return HeldResponse(services.log_streams.text(log), holds, media_type="text/plain")

    def lives() -> bool:
        return services.labs.log(session_id) == log and not services.queue.draining

    events = services.log_streams.events(log, lives)
    return HeldResponse(events, holds, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@contextmanager
def _reading(services: Services, session_id: str) -> Iterator[None]:
    with services.log_streams.place(session_id), services.queue.open_call(session_id):
        yield


async def get_artifacts(request: Request) -> Response:
    """GET /lab/artifacts."""
    services, session_id = await active_caller(request)
    refuse_while_draining(services)
    with services.queue.open_call(session_id):
        archive = await while_connected(request, services.labs.artifacts(session_id))
    headers = {
        "Content-Length": str(archive.seek(0, os.SEEK_END)),
        "Content-Disposition": 'attachment; filename="remote-lab-artifacts.tar.gz"',
        "Cache-Control": "no-store",
    }
    archive.seek(0)
    # Complete as it is, it is sent to its end whatever becomes of the lab meanwhile.
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
    """Release the reference of the key, or any one without a key. The teardown after the last one is not waited for."""
    services, session_id = await active_caller(request)
    await services.labs.release(session_id, idempotency_key(request))
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def destroy_lab(request: Request) -> Response:
    """Begin a teardown, which is not waited for; 409 for a lab in use without `force`."""
    services, session_id = await active_caller(request)
    force = uploads.boolean("the query parameter 'force'", request.query_params.get("force", "true"))
    begun = await services.labs.destroy(session_id, force=force)
    return Response(status_code=status.HTTP_202_ACCEPTED if begun else status.HTTP_204_NO_CONTENT)


async def check_topology(request: Request) -> Response:
    """Wait until netlab has checked the topology; 409 where the session's turn comes before that has begun.

    For waiting sessions too: 404 for one that is not live.
    """
    services, session_id = services_of(request), session_header(request)
    if services.queue.place(session_id) is None:
        raise await not_live(services, session_id)
    refuse_while_draining(services)
    was_waiting = not services.queue.is_active(session_id)
    with services.queue.open_call(session_id):
        upload = await _upload(request, services)
        check = asyncio.ensure_future(services.checks.check(session_id, upload))
        if was_waiting:
            # A session whose turn has come needs its lab, not its place among those who wait for a check.
            turn = asyncio.ensure_future(services.queue.wait_until_active(session_id))
            await asyncio.wait([check, turn], return_when=asyncio.FIRST_COMPLETED)
            turn.cancel()
            if services.queue.is_active(session_id):  # else it has ended, or the server is about to
                services.checks.give_up(session_id)
        return json_response(await check)
