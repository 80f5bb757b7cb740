"""The hop of a call from one server of the queue to another: headers, sockets, failures, and the end of either side."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from starlette.types import Scope

from neops_remote_lab.core.codes import ProxyOutcome

T = TypeVar("T")
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
"""Options of the sockets to other servers. There is no timeout for a response: the kernel detects after a minute that
the other host has vanished without closing its connections. What it cannot detect ends with `Hop.lost`."""

VIA: Final = (b"via", b"1.1 neops-remote-lab")
"""A header of every call that a server passes on. Its value ends with a pseudonym of all servers."""
_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    }
)
"""Headers that concern one connection only (RFC 9110, section 7.6.1)."""
_OF_REQUEST: Final = _HOP_BY_HOP | {b"host", b"expect"}
"""`Host` is that of the other server. Its `100 Continue` would come after this server's own."""
_OF_HANDSHAKE: Final = _OF_REQUEST | {
    *(b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-key"),
    *(b"sec-websocket-protocol", b"sec-websocket-version"),
}
"""The WebSocket library sets those of the handshake."""
_OF_RESPONSE: Final = _HOP_BY_HOP | {b"date", b"server", b"x-content-type-options"}
"""uvicorn adds the last three to every response."""


class OwnerFails(Exception):
    """The server of the session's host does not answer; the message continues a sentence about this server."""

    def __init__(self, problem: str, outcome: ProxyOutcome) -> None:
        super().__init__(problem)
        self.outcome = outcome


class Hop(NamedTuple):
    """The way of a call to the server of the session's host, and what ends it besides either side."""

    address: str
    """Base URL of that server."""
    drained: asyncio.Future[Any]
    """Done when this server shuts down."""
    lost: asyncio.Future[Any]
    """Done when that host is declared silent or gone and its server does not answer, as if frozen or out of reach."""
    moved: asyncio.Future[Any]
    """Done when the session has not been active on that host for so long that its server should have answered."""

    def require_owner(self) -> None:
        """Raises `OwnerFails` if there is no point in waiting for a response."""
        if self.lost.done():
            raise OwnerFails("shows no sign of life", ProxyOutcome.SILENT)
        if self.moved.done():
            raise OwnerFails("does not answer, and the session has left that host", ProxyOutcome.SILENT)


def target(scope: Scope) -> bytes:
    """Path and query of a call, exactly as they arrived."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


async def unless(work: Coroutine[Any, Any, T], *ends: asyncio.Future[Any]) -> T | None:
    """The result of some work, or None if one of the tasks or futures ends first. The work is cancelled then."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        await asyncio.wait({task})


def of_request(headers: RawHeaders) -> RawHeaders:
    """The headers of a request that is passed on."""
    return [*_without(_OF_REQUEST, headers), VIA]


def of_handshake(headers: RawHeaders) -> RawHeaders:
    """The headers of a request for a WebSocket that is passed on, without those of the handshake itself."""
    return [*_without(_OF_HANDSHAKE, headers), VIA]


def of_response(headers: RawHeaders) -> RawHeaders:
    """The headers of a response that is passed on."""
    return _without(_OF_RESPONSE, headers)


def passed_on(headers: RawHeaders) -> bool:
    """Whether another server has passed the request on."""
    pseudonym = VIA[1].split()[1]
    hops = (hop.split() for name, value in headers if name.lower() == VIA[0] for hop in value.split(b","))
    return any(pseudonym in hop[1:2] for hop in hops)


def _without(removed: frozenset[bytes], headers: RawHeaders) -> RawHeaders:
    raw = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in raw if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in raw if name not in removed and name not in named]
