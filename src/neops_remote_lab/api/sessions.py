"""Handlers of sessions: join, wait, heartbeat, end. Reads use the session cache; joining and ending also write."""

from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from neops_remote_lab.api.requests import (
    SESSION_HEADER,
    SHOWN_ID,
    gone,
    idempotency_key,
    label,
    not_live,
    parse,
    quarantined,
    read_body,
    refuse_while_draining,
    seconds,
    services_of,
    session_header,
    topology_of,
    while_connected,
)
from neops_remote_lab.api.responses import json_response
from neops_remote_lab.api.services import Services
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models import (
    ActiveSessionResponseDto,
    CreateSessionRequestDto,
    CreateSessionResponseDto,
    SessionState,
    SessionStatusResponseDto,
)
from neops_remote_lab.queue.service import Place


async def create_session(request: Request) -> Response:
    """Join the queue: 201 with id and position, sent after the session is committed."""
    services = services_of(request)
    refuse_while_draining(services)
    body = parse(CreateSessionRequestDto, await read_body(request))
    place = await services.queue.join(client=body.client, purpose=body.purpose, key=idempotency_key(request))
    answer = CreateSessionResponseDto(session_id=place.session.session_id, position=place.position)
    return json_response(answer, status.HTTP_201_CREATED)


async def get_session(request: Request) -> Response:
    """The position of a session. With `wait`, a long poll for at most that many seconds.

    The poll returns when the position changes, or the session or the server ends; with `position`, at once if the
    position is another one. 404 if the session is unknown or its client ended it, 410 if the server or an operator did.
    """
    services, session_id = services_of(request), request.path_params["session_id"]
    longest = min(seconds(request, "wait"), services.settings.http.max_wait)
    known = int(seconds(request, "position")) if "position" in request.query_params else None
    if not services.queue.is_live(session_id):
        await services.queue.learn(session_id)
    if services.queue.place(session_id) is None:
        raise await gone(services, session_id)
    with services.queue.open_call(session_id):
        held = services.queue.wait_for_change(session_id, longest, known)
        await (while_connected(request, held) if longest else held)  # a disconnected client must not renew its session
    if (place := services.queue.place(session_id)) is None:
        raise await gone(services, session_id)
    answer = SessionStatusResponseDto(
        status=SessionState.ACTIVE if place.position == 0 else SessionState.WAITING,
        position=place.position,
        eta_seconds=place.eta_seconds if place.position else None,
        waiting_for=_waiting_for(services, place),
        host=place.session.host,
        slot=place.session.slot,
    )
    headers = {"Retry-After": str(services.settings.http.retry_after)} if services.queue.draining else None
    return json_response(answer, headers=headers)


async def end_session(request: Request) -> Response:
    """End a session and begin the teardown of its lab. The next session is active before the response is sent."""
    services, session_id = services_of(request), request.path_params["session_id"]
    if not await services.queue.end(session_id):
        raise await not_live(services, session_id)
    await services.reconcile()
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def get_active_session(request: Request) -> Response:
    """The caller's session if it is active, otherwise the one that joined first; 404 if no session is active.

    This call renews no session.
    """
    active = services_of(request).queue.active
    if not active:
        raise HTTPException(status.HTTP_404_NOT_FOUND, detail="no session is active")
    own = request.headers.get(SESSION_HEADER)
    session = min(active, key=lambda each: (each.session_id != own, each.number))
    shown = session.session_id if session.session_id == own else session.session_id[:SHOWN_ID]
    return json_response(ActiveSessionResponseDto(session_id=shown, status=SessionState.ACTIVE, position=0))


async def heartbeat(request: Request) -> Response:
    """Renew a session; 404 if it is not live. Only memory changes: the database is updated later."""
    services, session_id = services_of(request), session_header(request)
    if not services.queue.is_live(session_id):
        await services.queue.learn(session_id)
    if not services.queue.renew(session_id):
        raise await not_live(services, session_id)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


def _waiting_for(services: Services, place: Place) -> str | None:
    """A sentence for a waiting session: who is active, with which topology, since when. Who began first is named."""
    if place.position == 0:
        return None
    hosts, sessions = services.queue.hosts, services.queue.active
    if not hosts.capacity:
        reason = quarantined(services)
        return f"the lab host is quarantined: {reason}" if reason else "no lab host admits sessions: see GET /queue"
    if hosts.wait_for_memory:
        return "no session becomes active while a lab waits for memory of the lab host"
    if hosts.have_room(sessions):
        return "a slot is free; the next session becomes active in a moment"
    active = min(sessions, key=lambda session: (session.activated_at or session.created_at, session.number))
    who = label(active.client) or f"session {one_line(active.session_id[:SHOWN_ID])}"
    what = f" for {label(active.purpose)}" if active.purpose else ""
    topology = topology_of(services, active)
    with_ = f" with {topology}" if topology else " without a lab yet"
    since = f" since {active.activated_at:%Y-%m-%d %H:%M:%S} UTC" if active.activated_at else ""
    others = f"; other active sessions: {len(sessions) - 1}" if len(sessions) > 1 else ""
    return f"{who} holds {'a' if others else 'the'} lab{what}{with_}{since}{others}"
