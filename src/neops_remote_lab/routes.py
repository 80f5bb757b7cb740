"""The handlers: each validates its input, asks the queue or the lab, and answers."""

import asyncio
import math
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from itertools import islice
from typing import Final, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import TypeAdapter, ValidationError
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from neops_remote_lab import uploads
from neops_remote_lab.log_stream import HeldResponse
from neops_remote_lab.models import (
    ActiveSessionResponseDto,
    CreateSessionRequestDto,
    CreateSessionResponseDto,
    DebugHealthDto,
    DeviceInfoDto,
    QueueDto,
    QueueEntryDto,
    ReadyDto,
    SessionState,
    SessionStatusResponseDto,
)
from neops_remote_lab.models.session import LABEL_LENGTH
from neops_remote_lab.queue import ENDED_BY_CLIENT, Place
from neops_remote_lab.responses import json_response
from neops_remote_lab.services import Services
from neops_remote_lab.store import Session
from neops_remote_lab.text import one_line, refuse_unprintable

T = TypeVar("T")

SHOWN_ID: Final = 8
"""So many characters of another session's id are shown."""
SHOWN_KEY: Final = 50
"""So many characters of a JSON object's unknown key are shown."""
SHOWN_REASON: Final = 500
"""So many characters of a reason that the database holds are shown."""
KEY_LENGTH: Final = 200
"""Longest idempotency key."""
MAX_JSON_BYTES: Final = 8 * 1024
"""Largest JSON body: two labels, every character of them escaped, fit in."""
MAX_PROBLEMS: Final = 10
"""Most mistakes of one body that are named."""
QUEUE_SHOWN: Final = 1000
"""Sessions that GET /queue lists unless ?limit= says otherwise."""

QUEUE_PIECE: Final = 100
"""Sessions that GET /queue describes at a time."""

_DEVICES: Final = TypeAdapter(list[DeviceInfoDto])


async def create_session(request: Request) -> Response:
    """POST /session."""
    services = _services(request)
    _refuse_while_draining(services)
    wish = _parse(CreateSessionRequestDto, await _body(request))
    place = await services.queue.join(client=wish.client, purpose=wish.purpose, key=_key(request))
    answer = CreateSessionResponseDto(session_id=place.session.session_id, position=place.position)
    return json_response(answer, status.HTTP_201_CREATED)


async def get_session(request: Request) -> Response:
    """GET /session/{session_id}."""
    services, session_id = _services(request), request.path_params["session_id"]
    seconds = min(_seconds(request, "wait"), services.settings.max_wait)
    known = int(_seconds(request, "position")) if "position" in request.query_params else None
    if services.queue.place(session_id) is None:
        raise await _gone(services, session_id)
    with services.queue.open_call(session_id):
        held = services.queue.wait_for_change(session_id, seconds, known)
        await (_while_connected(request, held) if seconds else held)  # a client that has gone away is not seen any more
    if (place := services.queue.place(session_id)) is None:
        raise await _gone(services, session_id)
    answer = SessionStatusResponseDto(
        status=SessionState.ACTIVE if place.position == 0 else SessionState.WAITING,
        position=place.position,
        eta_seconds=place.eta_seconds if place.position else None,
        waiting_for=_waiting_for(services, place),
    )
    headers = {"Retry-After": str(services.settings.retry_after)} if services.queue.draining else None
    return json_response(answer, headers=headers)


async def end_session(request: Request) -> Response:
    """DELETE /session/{session_id}."""
    services, session_id = _services(request), request.path_params["session_id"]
    if not await services.queue.end(session_id):
        raise await _not_live(services, session_id)
    await services.settle()
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def get_active_session(request: Request) -> Response:
    """GET /active-session."""
    active = _services(request).queue.active
    if active is None:
        raise HTTPException(status.HTTP_404_NOT_FOUND, detail="no session is active")
    own = request.headers.get("X-Session-ID") == active.session_id
    shown = active.session_id if own else active.session_id[:SHOWN_ID]
    return json_response(ActiveSessionResponseDto(session_id=shown, status=SessionState.ACTIVE, position=0))


async def heartbeat(request: Request) -> Response:
    """POST /session/heartbeat."""
    services, session_id = _services(request), _session_header(request)
    if not services.queue.renew(session_id):
        raise await _not_live(services, session_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def acquire_lab(request: Request) -> Response:
    """POST /lab."""
    services, session_id = await _active_caller(request)
    _refuse_while_draining(services)
    key = _key(request)
    with services.queue.open_call(session_id):
        upload = await uploads.receive(
            request.headers.get("Content-Type", ""), request.stream(), services.settings, services.run_blocking
        )
        if "respond-async" in request.headers.get("Prefer", "").lower():
            await services.labs.acquire_in_background(session_id, upload, key)
            headers = {"Location": "/lab", "Preference-Applied": "respond-async"}
            return Response(status_code=status.HTTP_202_ACCEPTED, headers=headers)
        return json_response(await _while_connected(request, services.labs.acquire(session_id, upload, key)))


async def get_lab(request: Request) -> Response:
    """GET /lab."""
    services, session_id = await _active_caller(request)
    return json_response(await services.labs.status(session_id))


async def list_devices(request: Request) -> Response:
    """GET /lab/devices."""
    services, session_id = await _active_caller(request)
    return json_response(_DEVICES.dump_json(await services.labs.devices(session_id)))


async def get_log(request: Request) -> Response:
    """GET /lab/log."""
    services, session_id = await _active_caller(request)
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


async def release_lab(request: Request) -> Response:
    """POST /lab/release."""
    services, session_id = await _active_caller(request)
    await services.labs.release(session_id, _key(request))
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def destroy_lab(request: Request) -> Response:
    """DELETE /lab."""
    services, session_id = await _active_caller(request)
    force = uploads.boolean("the query parameter 'force'", request.query_params.get("force", "true"))
    begun = await services.labs.destroy(session_id, force=force)
    return Response(status_code=status.HTTP_202_ACCEPTED if begun else status.HTTP_204_NO_CONTENT)


async def check_topology(request: Request) -> Response:
    """POST /topology/check."""
    services, session_id = _services(request), _session_header(request)
    if services.queue.place(session_id) is None:
        raise await _not_live(services, session_id)
    _refuse_while_draining(services)
    with services.queue.open_call(session_id):
        upload = await uploads.receive(
            request.headers.get("Content-Type", ""), request.stream(), services.settings, services.run_blocking
        )
        check = asyncio.ensure_future(services.preparations.check(session_id, upload))
        if not services.queue.is_active(session_id):
            # A session whose turn has come needs its lab, not its place among those who wait for a check.
            turn = asyncio.ensure_future(services.queue.wait_until_active(session_id))
            await asyncio.wait([check, turn], return_when=asyncio.FIRST_COMPLETED)
            turn.cancel()
            if services.queue.is_active(session_id):  # else it has ended, or the server is about to
                services.preparations.give_up(session_id)
        return json_response(await check)


async def get_queue(request: Request) -> Response:
    """GET /queue."""
    services = _services(request)
    limit = min(int(_seconds(request, "limit", default=QUEUE_SHOWN)), len(services.queue))
    now = services.clock.now()
    shown = []
    for number, session in enumerate(list(islice(services.queue, limit)), 1):
        if services.queue.place(session.session_id):
            shown.append(_entry(services, session, now))
        if number % QUEUE_PIECE == 0:
            await asyncio.sleep(0)  # a long list, asked for by many, leaves the loop its turns
    return json_response(QueueDto(length=len(services.queue), quarantined=_quarantined(services), sessions=shown))


async def healthz(_request: Request) -> Response:
    """GET /healthz."""
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def readyz(request: Request) -> Response:
    """GET /readyz."""
    services = _services(request)
    await services.database.data_version()  # raises where the database does not answer
    missing = [*await services.readiness.problems()]
    in_the_way = await services.run_blocking(services.labs.in_the_way)
    if services.queue.quarantined:
        missing.append(f"the host is quarantined: {_quarantined(services)}")
    if services.queue.draining:
        missing.append("the server is about to end")
    if in_the_way is not None:
        missing.append(in_the_way)
    if missing:
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail="; ".join(missing))
    return json_response(ReadyDto())


async def get_metrics(request: Request) -> Response:
    """GET /metrics."""
    return Response(generate_latest(_services(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def debug_health(request: Request) -> Response:
    """GET /debug/health."""
    services = _services(request)
    return json_response(
        DebugHealthDto(
            timestamp=services.clock.now(),
            uptime=services.clock.monotonic() - services.started,
            sessions=len(services.queue),
            queue_length=len(services.queue),
        )
    )


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _refuse_while_draining(services: Services) -> None:
    if services.queue.draining:
        raise HTTPException(
            status.HTTP_503_SERVICE_UNAVAILABLE,
            detail="the server is about to end: try again when it is back",
            headers={"Retry-After": str(services.settings.retry_after)},
        )


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            detail = f"the body is larger than {MAX_JSON_BYTES} bytes"
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail=detail, headers={"Connection": "close"})
    return bytes(body)


def _parse(model: type[CreateSessionRequestDto], body: bytes) -> CreateSessionRequestDto:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]
        detail = [{**problem, "loc": ["body", *map(_shown_key, problem["loc"])]} for problem in problems]
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail) from None  # type: ignore[arg-type]


def _shown_key(key: str | int) -> str | int:
    return one_line(key, SHOWN_KEY) if isinstance(key, str) else key


def _session_header(request: Request) -> str:
    if session_id := request.headers.get("X-Session-ID"):
        return session_id
    detail = "the header X-Session-ID is missing: send the session_id that POST /session answered"
    raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)


def _key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 0 < len(key) <= KEY_LENGTH:
        detail = f"the header Idempotency-Key must have 1 to {KEY_LENGTH} characters"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)
    if key is not None:
        try:
            refuse_unprintable("the header Idempotency-Key", _as_utf8(key))
        except ValueError as error:
            raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=str(error)) from None
    return key


def _as_utf8(header: str) -> str:
    """A header, which the HTTP library decodes as Latin-1, as its sender meant it."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


async def _active_caller(request: Request) -> tuple[Services, str]:
    """The session that calls, which must be active. Its call renews it."""
    services, session_id = _services(request), _session_header(request)
    if not services.queue.renew(session_id):
        raise await _not_live(services, session_id)
    if not services.queue.is_active(session_id):
        raise HTTPException(
            status.HTTP_423_LOCKED,
            detail="the session is not active yet: GET /session/{id}?wait=60 tells when it is",
            headers={"Retry-After": str(services.settings.retry_after)},
        )
    return services, session_id


async def _not_live(services: Services, session_id: str) -> HTTPException:
    return _unknown(await services.queue.end_reason(session_id))


def _unknown(reason: str | None) -> HTTPException:
    if reason is None:
        return HTTPException(status.HTTP_404_NOT_FOUND, detail="unknown session: POST /session joins the queue")
    detail = f"the session has ended: {one_line(reason, SHOWN_REASON)}"
    return HTTPException(status.HTTP_404_NOT_FOUND, detail=detail)


async def _gone(services: Services, session_id: str) -> HTTPException:
    """As `_not_live`, but 410 for a session that somebody else has ended."""
    reason = await services.queue.end_reason(session_id)
    error = _unknown(reason)
    if reason in {None, ENDED_BY_CLIENT}:
        return error
    return HTTPException(status.HTTP_410_GONE, detail=error.detail)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work` as long as the client is there; it is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([task, left], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail="the client went away")
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seconds(request: Request, name: str, default: float = 0) -> float:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        detail = f"the query parameter {name!r} must be a number from 0 on, not {text[:50]!r}"
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)
    return number


def _waiting_for(services: Services, place: Place) -> str | None:
    """One sentence for somebody who waits: who holds the lab, with what, since when."""
    if place.position == 0:
        return None
    if services.queue.quarantined:
        return f"the lab host is quarantined: {_quarantined(services)}"
    if (active := services.queue.active) is None:
        return "nobody holds the lab; the queue moves in a moment"
    who = _label(active.client) or f"session {one_line(active.session_id[:SHOWN_ID])}"
    what = f" for {_label(active.purpose)}" if active.purpose else ""
    topology = _topology(services, active)
    with_ = f" with {topology}" if topology else " without a lab yet"
    since = f" since {active.activated_at:%Y-%m-%d %H:%M:%S} UTC" if active.activated_at else ""
    return f"{who} holds the lab{what}{with_}{since}"


def _topology(services: Services, session: Session) -> str | None:
    lab = services.labs.lab
    return _label(lab.topology) if lab and lab.session_id == session.session_id else None


def _label(text: str | None) -> str | None:
    """A label or a name as others see it: whoever wrote it to the database may not have checked it."""
    return one_line(text, LABEL_LENGTH) if text else None


def _quarantined(services: Services) -> str | None:
    reason = services.queue.quarantined
    return one_line(reason, SHOWN_REASON) if reason else None


def _entry(services: Services, session: Session, now: datetime) -> QueueEntryDto:
    active = session.activated_at
    place = services.queue.place(session.session_id)
    return QueueEntryDto(
        session_id=one_line(session.session_id[:SHOWN_ID]),
        position=place.position if place else 0,
        status=SessionState(session.state),
        client=_label(session.client),
        purpose=_label(session.purpose),
        age_seconds=max(0.0, (now - session.created_at).total_seconds()),
        active_seconds=max(0.0, (now - active).total_seconds()) if active else None,
        last_seen_seconds=services.queue.unseen_for(session.session_id),
        topology=_topology(services, session),
    )
