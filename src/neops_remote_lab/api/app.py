"""The HTTP service: routes, errors, and the lifespan."""

import contextlib
import functools
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from neops_remote_lab import __version__
from neops_remote_lab.api import devices, errors, labs, monitoring, openapi, sessions
from neops_remote_lab.api.maintenance import Maintenance
from neops_remote_lab.api.proxy import Proxy
from neops_remote_lab.api.responses import json_response
from neops_remote_lab.api.services import build_services
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.clock import Clock

logger = logging.getLogger(__name__)

_STATIC: Final = Path(__file__).with_name("static")


def create_app(settings: ServiceSettings, clock: Clock | None = None) -> Starlette:
    """Create the application. Its lifespan opens the database, which must be migrated, and resumes its state."""
    clock = clock or Clock()
    proxy = Proxy(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        services = app.state.services = build_services(settings, clock)
        maintenance = Maintenance(services)
        async with contextlib.AsyncExitStack() as ends:  # all callbacks run, even if one of them fails
            ends.push_async_callback(services.database.close)
            ends.push_async_callback(proxy.close)
            ends.push_async_callback(services.slots.close, keep=settings.labs.on_exit == "keep")
            ends.push_async_callback(services.checks.close)
            ends.push_async_callback(maintenance.stop)
            ends.callback(services.drain)
            await maintenance.start()
            yield

    return Starlette(
        routes=_routes(proxy),
        lifespan=lifespan,
        exception_handlers=errors.HANDLERS,
    )


def _routes(proxy: Proxy) -> list[BaseRoute]:
    passed_on = [Middleware(proxy.around)]
    return [
        Route("/session", sessions.create_session, methods=["POST"]),
        Route("/session/heartbeat", sessions.heartbeat, methods=["POST"]),
        Route("/session/{session_id}", sessions.get_session, methods=["GET"]),
        Route("/session/{session_id}", sessions.end_session, methods=["DELETE"]),
        Route("/active-session", sessions.get_active_session, methods=["GET"]),
        Route("/lab", labs.acquire_lab, methods=["POST"], middleware=passed_on),
        Route("/lab", labs.get_lab, methods=["GET"], middleware=passed_on),
        Route("/lab", labs.destroy_lab, methods=["DELETE"], middleware=passed_on),
        Route("/lab/devices", labs.list_devices, methods=["GET"], middleware=passed_on),
        Route("/lab/devices/{name}/exec", devices.execute, methods=["POST"], middleware=passed_on),
        WebSocketRoute("/lab/devices/{name}/console", devices.console, middleware=passed_on),
        Route("/lab/devices/{name}/console", devices.upgrade_required, methods=["GET"]),
        WebSocketRoute("/lab/devices/{name}/tcp/{port}", devices.forward, middleware=passed_on),
        Route("/lab/devices/{name}/tcp/{port}", devices.upgrade_required, methods=["GET"]),
        Route("/lab/log", labs.get_log, methods=["GET"], middleware=passed_on),
        Route("/lab/artifacts", labs.get_artifacts, methods=["GET"], middleware=passed_on),
        Route("/lab/release", labs.release_lab, methods=["POST"], middleware=passed_on),
        Route("/topology/check", labs.check_topology, methods=["POST"]),
        Route("/queue", monitoring.get_queue, methods=["GET"]),
        Route("/healthz", monitoring.healthz, methods=["GET"]),
        Route("/readyz", monitoring.readyz, methods=["GET"]),
        Route("/debug/health", monitoring.debug_health, methods=["GET"]),
        Route("/metrics", monitoring.get_metrics, methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/docs", _docs, methods=["GET"]),
        Route("/docs/docs.js", _docs_script, methods=["GET"]),
        Mount("/docs", StaticFiles(directory=_STATIC / "swagger-ui")),
    ]


async def _openapi(_request: Request) -> Response:
    return json_response(_description())


@functools.cache
def _description() -> bytes:
    return json.dumps(openapi.describe(__version__)).encode()


async def _docs(_request: Request) -> Response:
    # The policy in the page's <meta> element restricts its scripts, but frame-ancestors works only as a header.
    return FileResponse(_STATIC / "docs.html", headers={"Content-Security-Policy": "frame-ancestors 'none'"})


async def _docs_script(_request: Request) -> Response:
    return FileResponse(_STATIC / "docs.js")
