"""Calls the server's HTTP API and rides out its restarts."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Self

import httpx

from neops_remote_lab.clock import Clock
from neops_remote_lab.models.session import CreateSessionResponseDto

UNREACHABLE_TOLERANCE = 120.0
"""Seconds for which a server that cannot be reached is tried again, where no wait has a deadline of its own."""
CLOSE_TOLERANCE = 15.0
"""The same for the end of a session: a user wants to leave, and without heartbeats the server ends it by itself."""
LONGEST_RETRY_AFTER = 10.0
"""Most seconds of a server's Retry-After that are obeyed."""
FIRST_BACK_OFF = 0.2
LONGEST_BACK_OFF = 5.0
"""Seconds between two attempts: they double from the one to the other."""

RESTARTING = frozenset({httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT})
"""What a server that drains answers, or a proxy in front of one that is away."""
GONE = frozenset({httpx.codes.NOT_FOUND, httpx.codes.GONE})
"""What a server answers for a session that has ended."""
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)

_log = logging.getLogger(__name__)


class ServerConnection:
    """Calls the server's HTTP API and rides out its restarts. Threads may share one.

    Args:
        base_url: the server's address, a path prefix included where a proxy adds one.
        request_timeout: seconds for which one answer may keep us waiting.
        transport: httpx transport to use in place of the network.
        clock: where the time comes from.
        pause: waits for as many seconds as it is given.
    """

    def __init__(
        self,
        base_url: str,
        request_timeout: float = 30,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.base_url = base_url
        self._request_timeout = request_timeout
        self._http = httpx.Client(base_url=base_url, transport=transport)
        self._clock = clock or Clock()
        self.pause = pause or threading.Event().wait

    def now(self) -> float:
        """Seconds on the clock that deadlines are measured with."""
        return self._clock.monotonic()

    def call(self, method: str, path: str, *, until: float, slow: bool = False, **request: Any) -> httpx.Response:
        """Send one request, again and again while the server is unreachable or restarting.

        Only for requests that may arrive twice.

        Args:
            method: HTTP method.
            path: path below the base URL.
            until: time on this connection's clock after which nothing is tried again.
            slow: the answer may take until then, rather than the request timeout.
            request: what else `httpx.Client.request` takes.

        Returns:
            The answer, whatever its status; 502, 503 and 504 only when the time is up.

        Raises:
            httpx.TransportError: no answer in time, or the address is wrong.
        """
        began, delay = self.now(), FIRST_BACK_OFF
        while True:
            try:
                response = self._http.request(method, path, timeout=self._timeout(until, slow=slow), **request)
            except _HOPELESS:
                raise
            except httpx.TransportError as error:
                if self.now() >= until:
                    raise self._explain(error, self.now() - began) from error
                _log.debug("%s %s: %r; trying again", method, path, error)
                wait = delay
            else:
                if response.status_code not in RESTARTING or self.now() >= until:
                    return response
                wait = retry_after(response, delay)
            self.pause(min(wait, max(until - self.now(), 0)))
            delay = min(2 * delay, LONGEST_BACK_OFF)

    def _timeout(self, until: float, *, slow: bool) -> httpx.Timeout:
        left = max(until - self.now(), 1)  # the last attempt gets a chance too
        usual = min(self._request_timeout, left)
        return httpx.Timeout(usual, read=left if slow else usual)

    def _explain(self, error: httpx.TransportError, tried: float) -> httpx.TransportError:
        reason = str(error) or type(error).__name__
        return type(error)(f"no answer from {self.base_url} in {tried:.0f} s: {reason}", request=error.request)

    def join(self, labels: dict[str, str], key: str, until: float) -> str:
        """Join the queue, or find the session that has joined with the same key.

        Raises:
            httpx.HTTPStatusError: the server refused.
            httpx.TransportError: no answer in time, or the address is wrong.
        """
        response = self.call("POST", "/session", until=until, json=labels, headers={"Idempotency-Key": key})
        raise_for_error(response)
        return CreateSessionResponseDto.model_validate_json(response.content).session_id

    def release(self, session_id: str, reference: str | None) -> httpx.Response:
        """Let go of the reference that the acquire with this idempotency key gave, or of any one without a key."""
        headers = headers_of(session_id, reference)
        return self.call("POST", "/lab/release", until=self.now() + UNREACHABLE_TOLERANCE, headers=headers)

    def end_session(self, session_id: str) -> None:
        """End a session. Never raises on trouble with the network or the server: a session without contact ends too."""
        until = self.now() + CLOSE_TOLERANCE
        try:
            response = self.call("DELETE", f"/session/{session_id}", until=until, headers=headers_of(session_id))
            if response.status_code not in GONE:
                raise_for_error(response)
        except httpx.HTTPError as error:
            _log.warning("could not end session %s: %s", session_id[:8], error)

    def end_session_of(self, key: str) -> None:
        """As `end_session`, for the session that joined with this idempotency key where nothing else is known of it."""
        try:
            session_id = self.join({}, key, self.now())
        except httpx.HTTPError as error:
            _log.warning("could not end the session that was joining: %s", error)
        else:
            self.end_session(session_id)

    def close(self) -> None:
        """Close the network connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def detail_of(response: httpx.Response) -> str:
    """What the server says is wrong: the `detail` of its answer, or the answer's text where there is none."""
    try:
        body = response.json()
    except ValueError:
        body = None
    detail = body.get("detail") if isinstance(body, dict) else None
    return str(detail or response.text.strip() or response.reason_phrase)


def raise_for_error(response: httpx.Response) -> None:
    """Raise `httpx.HTTPStatusError`, with the server's own words in its message, unless the call succeeded."""
    if response.is_success:
        return
    request = response.request
    message = f"{request.method} {request.url.path}: {response.status_code}: {detail_of(response)}"
    raise httpx.HTTPStatusError(message, request=request, response=response)


def retry_after(response: httpx.Response, default: float) -> float:
    """Seconds until the call is worth repeating: the server's Retry-After within reason, else the default."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_RETRY_AFTER) if text.isdecimal() else default


def headers_of(session_id: str, idempotency_key: str | None = None) -> dict[str, str]:
    """Headers of a call that belongs to a session and, with a key, may arrive twice."""
    headers = {"X-Session-ID": session_id}
    return headers if idempotency_key is None else headers | {"Idempotency-Key": idempotency_key}
