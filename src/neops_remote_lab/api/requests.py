"""Shared by the handlers: the calling session, parsing of requests, and cancellation when a client disconnects."""

import asyncio
import math
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette import status
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from neops_remote_lab.api.services import Services
from neops_remote_lab.core.codes import EndCode
from neops_remote_lab.core.text import one_line, refuse_unprintable
from neops_remote_lab.models.session import LABEL_LENGTH
from neops_remote_lab.store.rows import EndedSession, Session

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

SESSION_HEADER: Final = "X-Session-ID"
"""The header that names the calling session."""
SHOWN_ID: Final = 8
"""Number of characters shown of another session's id."""
SHOWN_KEY: Final = 50
"""Maximum length shown of an unknown key of a JSON object."""
SHOWN_REASON: Final = 500
"""Maximum length shown of a reason from the database."""
KEY_LENGTH: Final = 200
"""Maximum length of an idempotency key, in characters."""
MAX_JSON_BYTES: Final = 8 * 1024
"""Maximum size of a JSON body: enough for two labels with every character escaped."""
MAX_PROBLEMS: Final = 10
"""Maximum number of validation errors reported for one body."""


def services_of(request: HTTPConnection) -> Services:
    services: Services = request.app.state.services
    return services


def refuse_while_draining(services: Services) -> None:
    if services.queue.draining:
        raise HTTPException(
            status.HTTP_503_SERVICE_UNAVAILABLE,
            detail="the server is shutting down: try again when it is back",
            headers={"Retry-After": str(services.settings.http.retry_after)},
        )


async def read_body(request: Request, most: int = MAX_JSON_BYTES) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            detail = f"the body is larger than {most} bytes"
            raise HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, detail=detail, headers={"Connection": "close"})
    return bytes(body)


def parse(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]
        detail = [{**problem, "loc": ["body", *map(_shown_key, problem["loc"])]} for problem in problems]
        raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail) from None  # type: ignore[arg-type]


def _shown_key(key: str | int) -> str | int:
    return one_line(key, SHOWN_KEY) if isinstance(key, str) else key


def session_header(request: HTTPConnection) -> str:
    if session_id := request.headers.get(SESSION_HEADER):
        return session_id
    detail = "the header X-Session-ID is missing: send the session_id that POST /session answered"
    raise HTTPException(status.HTTP_422_UNPROCESSABLE_CONTENT, detail=detail)


def idempotency_key(request: Request) -> str | None:
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
    """Undo the HTTP library's Latin-1 decoding of a header that is UTF-8."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeDecodeError:
        return header


async def active_caller(request: HTTPConnection) -> tuple[Services, str]:
    """The services and the calling session, which is renewed. The proxy has just read what other servers know of it.

    Raises HTTPException 422 without a session header, 404 if the session is not live, 423 if it is not active.
    """
    services, session_id = services_of(request), session_header(request)
    if not services.queue.renew(session_id):
        raise await not_live(services, session_id)
    if not services.queue.is_active(session_id):
        raise HTTPException(
            status.HTTP_423_LOCKED,
            detail="the session is not active yet: GET /session/{id}?wait=60 waits until it is",
            headers={"Retry-After": str(services.settings.http.retry_after)},
        )
    return services, session_id


async def not_live(services: Services, session_id: str) -> HTTPException:
    return _unknown(await services.queue.ended(session_id))


def _unknown(ended: EndedSession | None) -> HTTPException:
    if ended is None:
        return HTTPException(status.HTTP_404_NOT_FOUND, detail="unknown session: POST /session joins the queue")
    detail = f"the session has ended: {one_line(ended.detail, SHOWN_REASON)}"
    return HTTPException(status.HTTP_404_NOT_FOUND, detail=detail)


async def gone(services: Services, session_id: str) -> HTTPException:
    """As `not_live`, but 410 if the server or an operator ended the session."""
    ended = await services.queue.ended(session_id)
    error = _unknown(ended)
    if ended is None or ended.code is EndCode.CLIENT:
        return error
    return HTTPException(status.HTTP_410_GONE, detail=error.detail)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, and cancel it when the client disconnects."""
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


def seconds(request: HTTPConnection, name: str, default: float = 0) -> float:
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


def topology_of(services: Services, session: Session) -> str | None:
    lab = services.slots.of(session.session_id).lab
    return label(lab.topology) if lab and lab.session_id == session.session_id else None


def label(text: str | None) -> str | None:
    """A label or name for display. Values in the database may have been written without a check."""
    return one_line(text, LABEL_LENGTH) if text else None


def quarantined(services: Services) -> str | None:
    reason = services.queue.quarantined
    return one_line(reason, SHOWN_REASON) if reason else None
