"""Translates failures into HTTP: a status, `{"detail": …}`, and `Retry-After` if a retry can help."""

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response

from neops_remote_lab.api import hops
from neops_remote_lab.api.responses import NEVER_SNIFFED, error_response
from neops_remote_lab.core.log_format import shorten_ids
from neops_remote_lab.core.text import one_line
from neops_remote_lab.labs.refusals import Reason, Refused
from neops_remote_lab.store.protocol import DatabaseError

logger = logging.getLogger(__name__)

STATUS: Final[Mapping[Reason, int]] = {
    Reason.SESSION_ENDED: status.HTTP_404_NOT_FOUND,
    Reason.NO_LAB: status.HTTP_404_NOT_FOUND,
    Reason.NO_DEVICE: status.HTTP_404_NOT_FOUND,
    Reason.UNKNOWN_KEY: status.HTTP_404_NOT_FOUND,
    Reason.TIMED_OUT: status.HTTP_408_REQUEST_TIMEOUT,
    Reason.IN_USE: status.HTTP_409_CONFLICT,
    Reason.DESTROYED: status.HTTP_409_CONFLICT,
    Reason.TURN_HAS_COME: status.HTTP_409_CONFLICT,
    Reason.REJECTED: status.HTTP_422_UNPROCESSABLE_CONTENT,
    Reason.TOO_LARGE: status.HTTP_422_UNPROCESSABLE_CONTENT,
    Reason.RELEASED_KEY: status.HTTP_422_UNPROCESSABLE_CONTENT,
    Reason.BUSY: status.HTTP_423_LOCKED,
    Reason.QUARANTINED: status.HTTP_423_LOCKED,
    Reason.TAKEN_ALREADY: status.HTTP_429_TOO_MANY_REQUESTS,
    Reason.FAILED: status.HTTP_500_INTERNAL_SERVER_ERROR,
    Reason.UNSUPPORTED: status.HTTP_501_NOT_IMPLEMENTED,
    Reason.UNREACHABLE: status.HTTP_502_BAD_GATEWAY,
    Reason.CONNECT_TIMED_OUT: status.HTTP_504_GATEWAY_TIMEOUT,
    Reason.SERVER_ENDS: status.HTTP_503_SERVICE_UNAVAILABLE,
    Reason.DATABASE_FAILED: status.HTTP_503_SERVICE_UNAVAILABLE,
    Reason.HOST_IS_FULL: status.HTTP_507_INSUFFICIENT_STORAGE,
}
"""The HTTP status of each refusal: below 500 the caller can do something about it, from 500 on the host is at fault."""
RETRIED: Final = frozenset(
    {
        *(Reason.BUSY, Reason.QUARANTINED, Reason.DESTROYED, Reason.TAKEN_ALREADY, Reason.SERVER_ENDS),
        Reason.DATABASE_FAILED,
    }
)
"""Refusals of calls that can succeed later without a change; they get `Retry-After`."""
DATABASE_RETRY_AFTER: Final = 5
"""Seconds in `Retry-After` when the database cannot be used."""


async def _http_exception(request: HTTPConnection, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    detail, headers = error.detail, dict(error.headers or {})
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        detail = "this path does not take that method: see /docs"
    if hops.passed_on(request.scope["headers"]):  # the other server ends a refused upload itself, and reads this first
        headers.pop("Connection", None)
    if request.scope["type"] == "websocket":  # uvicorn adds it to the others alone
        headers |= [NEVER_SNIFFED]
    return error_response(detail, error.status_code, headers)


async def _refused(request: HTTPConnection, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    headers = None
    if error.reason in RETRIED:
        headers = {"Retry-After": str(request.app.state.services.settings.http.retry_after)}
    return await _http_exception(request, HTTPException(STATUS[error.reason], detail=str(error), headers=headers))


async def _database_fails(request: HTTPConnection, error: Exception) -> Response:
    method, path = request.scope.get("method", "WebSocket"), one_line(shorten_ids(request.url.path))
    logger.error("%s %s failed: the database says: %s", method, path, error)
    detail = f"the server's database cannot be used ({error}): nothing was changed; try again later"
    headers = {"Retry-After": str(DATABASE_RETRY_AFTER)}
    failed = HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, detail=detail, headers=headers)
    return await _http_exception(request, failed)


async def _client_left(_request: HTTPConnection, _error: Exception) -> Response:
    return Response(status_code=status.HTTP_400_BAD_REQUEST)


async def _unexpected(_request: HTTPConnection, _error: Exception) -> Response:
    detail = "the server failed; its log says why"
    return error_response(detail, status.HTTP_500_INTERNAL_SERVER_ERROR)


HANDLERS: Final[Mapping[Any, Callable[[HTTPConnection, Exception], Coroutine[Any, Any, Response]]]] = {
    HTTPException: _http_exception,
    Refused: _refused,
    DatabaseError: _database_fails,
    ClientDisconnect: _client_left,
    Exception: _unexpected,
}
