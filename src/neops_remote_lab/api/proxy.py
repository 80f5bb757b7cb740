"""Passes calls on a lab to the server of the session's host, if that is another server of the queue.

A client thus needs the address of one server only. Nothing is stored on the way: bodies, event streams and WebSockets
are relayed as they arrive, at the speed of the slower side, and a side that disconnects disconnects the other one.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from neops_remote_lab.api import hops
from neops_remote_lab.api.requests import SESSION_HEADER, refuse_while_draining, services_of, session_header
from neops_remote_lab.api.services import Services
from neops_remote_lab.api.settings import ServiceSettings
from neops_remote_lab.core.codes import ProxyOutcome
from neops_remote_lab.core.log_format import shorten_ids
from neops_remote_lab.core.text import one_line
from neops_remote_lab.queue.known_hosts import Owner
from neops_remote_lab.queue.service import SessionQueue

if TYPE_CHECKING:
    from neops_remote_lab.api.http_relay import HttpRelay
    from neops_remote_lab.api.websocket_relay import WebSocketRelay

logger = logging.getLogger(__name__)


class _Relays(NamedTuple):
    http: "HttpRelay"
    websocket: "WebSocketRelay"


class Proxy:
    """Passes the calls on labs of other hosts on."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._loading: asyncio.Task[_Relays] | None = None
        self._drained: asyncio.Task[Any] | None = None
        self._calls = 0
        self._questions: dict[str, asyncio.Task[bool]] = {}
        """Whether the server at an address answers, while it is asked."""

    def around(self, app: ASGIApp) -> ASGIApp:
        """Middleware for the routes of labs: the application gets the calls that are not passed on.

        Raises HTTPException 503 if a call cannot be passed on now.
        """

        async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
            if owner := await _owner(HTTPConnection(scope)):
                await self._pass_on(scope, receive, send, owner)
            else:
                await app(scope, receive, send)

        return pass_on

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, owner: Owner) -> None:
        call = HTTPConnection(scope)
        services, outcome = services_of(call), ProxyOutcome.REFUSED
        try:
            if hops.passed_on(scope["headers"]):
                detail = "the servers of the queue do not agree on the host of the session: try again later"
                raise self._unavailable(detail)
            refuse_while_draining(services)
            with self._counted(), services.queue.open_call(session_header(call)):
                outcome = ProxyOutcome.ABANDONED
                async with self._hop(services, session_header(call), owner) as hop:
                    await self._require_answer(services, owner, hop)
                    outcome = await self._relay(scope, receive, send, hop)
        except hops.OwnerFails as error:
            outcome = error.outcome
            path, cause = one_line(shorten_ids(call.url.path)), one_line(repr(error.__cause__ or error.outcome))
            logger.warning("%s is not passed on to %s: it %s: %s", path, one_line(owner.address), error, cause)
            raise self._unavailable(f"the server of the session's host {error}: try again later") from None
        finally:
            services.metrics.call_passed_on(owner.host, outcome)

    async def _require_answer(self, services: Services, owner: Owner, hop: hops.Hop) -> None:
        """Raise `OwnerFails` if the owner's host is silent or gone, and its server does not answer.

        Then the call must not be sent: a suspended server would carry it out later. But a server that only cannot reach
        the database goes on with its labs, and can answer everything that changes nothing.
        """
        is_silent = services.queue.hosts.silence_of(owner.host).done()
        if is_silent and not await hops.unless(self._answers(owner.address), hop.drained):
            refuse_while_draining(services)
            raise hops.OwnerFails("shows no sign of life", ProxyOutcome.SILENT)

    async def _answers(self, address: str) -> bool:
        if (question := self._questions.get(address)) is None:  # calls share it
            question = self._questions[address] = asyncio.create_task(self._ask(address))
            question.add_done_callback(lambda _: self._questions.pop(address))
        return await asyncio.shield(question)

    async def _ask(self, address: str) -> bool:
        return await (await self._relays()).http.answers(address)

    async def _lost(self, queue: SessionQueue, owner: Owner) -> None:
        """Wait until the owner's host is silent or gone, and its server does not answer."""
        while True:
            await asyncio.shield(queue.hosts.silence_of(owner.host))
            if not await self._answers(owner.address):
                return
            await asyncio.sleep(self._settings.http.proxy_connect_timeout)

    @asynccontextmanager
    async def _hop(self, services: Services, session_id: str, owner: Owner) -> AsyncIterator[hops.Hop]:
        self._drained = self._drained or asyncio.create_task(services.draining.wait())
        lost = asyncio.create_task(self._lost(services.queue, owner))
        moved = asyncio.create_task(self._moved(services.queue, session_id, owner))
        try:
            yield hops.Hop(owner.address, self._drained, lost, moved)
        finally:
            lost.cancel()
            moved.cancel()

    async def _moved(self, queue: SessionQueue, session_id: str, owner: Owner) -> None:
        await queue.wait_while_active_on(owner.host, session_id)
        await asyncio.sleep(self._settings.http.proxy_connect_timeout)  # its server knows better how the call ends

    async def _relay(self, scope: Scope, receive: Receive, send: Send, hop: hops.Hop) -> ProxyOutcome:
        relays = await self._relays()
        hop.require_owner()
        if scope["type"] == "websocket":
            return await relays.websocket.relay(WebSocket(scope, receive, send), hop)
        return await relays.http.relay(Request(scope, receive), send, hop)

    async def close(self) -> None:
        """Close the idle connections to other servers."""
        if self._drained is not None:
            self._drained.cancel()
        if self._loading is not None:
            await (await self._loading).http.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._calls >= self._settings.http.max_proxied_calls:
            raise self._unavailable(f"{self._calls} calls are passed on to other servers already: try again later")
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def _unavailable(self, detail: str) -> HTTPException:
        headers = {"Retry-After": str(self._settings.http.retry_after)}
        return HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail=detail, headers=headers)

    async def _relays(self) -> _Relays:
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(_load, self._settings))
        return await asyncio.shield(self._loading)


async def _owner(call: HTTPConnection) -> Owner | None:
    """The server of the session's host; None if the call is to be answered here."""
    services, session_id = services_of(call), call.headers.get(SESSION_HEADER)
    if not session_id:
        return None
    if owner := services.queue.owner(session_id):
        return owner
    await _learn(services, session_id)
    return services.queue.owner(session_id)


async def _learn(services: Services, session_id: str) -> None:
    """Read a session from the database that another server may have changed.

    One that has a lab on this host keeps its slot there until the host is gone, and can use it without the database.
    """
    if not (services.queue.is_active(session_id) and services.slots.has_lab(session_id)):
        await services.queue.learn(session_id)


def _load(settings: ServiceSettings) -> _Relays:
    """Import the libraries, which takes too long for the event loop, and is not needed by most servers."""
    from neops_remote_lab.api.http_relay import HttpRelay  # noqa: PLC0415
    from neops_remote_lab.api.websocket_relay import WebSocketRelay  # noqa: PLC0415

    trust = ssl.create_default_context()
    return _Relays(HttpRelay(settings.http, trust), WebSocketRelay(settings.http, trust))
