"""Handlers for monitoring: queue, health, readiness, metrics."""

import asyncio
from collections import Counter
from datetime import datetime
from itertools import islice
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from neops_remote_lab import __version__
from neops_remote_lab.api.requests import SHOWN_ID, SHOWN_REASON, label, quarantined, seconds, services_of, topology_of
from neops_remote_lab.api.responses import json_response
from neops_remote_lab.api.services import Services
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models import (
    DebugHealthDto,
    QueueDto,
    QueueEntryDto,
    QueueHostDto,
    ReadyDto,
    SessionState,
)
from neops_remote_lab.store.rows import Host, Session

QUEUE_SHOWN: Final = 1000
"""Default of `?limit=`: how many sessions GET /queue lists."""
QUEUE_PIECE: Final = 100
"""After this many sessions GET /queue yields to the event loop."""


async def get_queue(request: Request) -> Response:
    """The live sessions, the active ones first, without their whole ids."""
    services = services_of(request)
    limit = min(int(seconds(request, "limit", default=QUEUE_SHOWN)), len(services.queue))
    now = services.clock.now()
    shown = []
    for number, session in enumerate(list(islice(services.queue, limit)), 1):
        if services.queue.place(session.session_id):
            shown.append(_entry(services, session, now))
        if number % QUEUE_PIECE == 0:
            await asyncio.sleep(0)  # let other requests run
    busy = Counter(session.host for session in services.queue.active)
    hosts = [_host(host, busy[host.name]) for host in services.queue.hosts]
    length, reason = len(services.queue), quarantined(services)
    return json_response(QueueDto(length=length, quarantined=reason, sessions=shown, hosts=hosts))


def _host(host: Host, active: int) -> QueueHostDto:
    return QueueHostDto(
        name=one_line(host.name),
        state=host.state,
        draining=host.is_draining,
        holds_grants=host.holds_grants,
        slots=host.slots,
        active=active,
        quarantined=one_line(host.quarantined, SHOWN_REASON) if host.quarantined else None,
    )


def _entry(services: Services, session: Session, now: datetime) -> QueueEntryDto:
    active = session.activated_at
    place = services.queue.place(session.session_id)
    return QueueEntryDto(
        session_id=one_line(session.session_id[:SHOWN_ID]),
        position=place.position if place else 0,
        status=SessionState(session.state),
        client=label(session.client),
        purpose=label(session.purpose),
        age_seconds=max(0.0, (now - session.created_at).total_seconds()),
        active_seconds=max(0.0, (now - active).total_seconds()) if active else None,
        last_seen_seconds=services.queue.unseen_for(session.session_id),
        topology=topology_of(services, session),
        host=session.host,
        slot=session.slot,
    )


async def healthz(_request: Request) -> Response:
    """204 while the event loop is running. It checks nothing else, so it answers in any state of the host."""
    return Response(status_code=status.HTTP_204_NO_CONTENT)


async def readyz(request: Request) -> Response:
    """200 if the host can start labs, otherwise 503 with all problems. Results of host commands are cached."""
    services = services_of(request)
    await services.database.ping()  # raises if the database cannot be used
    missing = [*await services.readiness.problems()]
    in_the_way = await services.run_blocking(services.slots.in_the_way)
    if services.queue.quarantined:
        missing.append(f"the host is quarantined: {quarantined(services)}")
    if services.queue.draining:
        missing.append("the server is shutting down")
    if in_the_way is not None:
        missing.append(in_the_way)
    if missing:
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail="; ".join(missing))
    return json_response(ReadyDto())


async def get_metrics(request: Request) -> Response:
    """All metrics, in the text format of Prometheus."""
    return Response(generate_latest(services_of(request).metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def debug_health(request: Request) -> Response:
    """Figures as in 1.x, and the version; `sessions` and `queue_length` are the same number."""
    services = services_of(request)
    return json_response(
        DebugHealthDto(
            timestamp=services.clock.now(),
            uptime=services.clock.monotonic() - services.started,
            sessions=len(services.queue),
            queue_length=len(services.queue),
            version=__version__,
        )
    )
