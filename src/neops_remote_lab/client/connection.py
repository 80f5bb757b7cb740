"""HTTP calls to the server, retried while the server restarts."""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx

from neops_remote_lab.client import failures
from neops_remote_lab.client.access import Access, Credentials
from neops_remote_lab.client.answers import CALL_PATH, detail_of, parsed, raise_for_error, retry_after, without_session
from neops_remote_lab.client.notices import Notices
from neops_remote_lab.core.client_settings import REQUEST_TIMEOUT, UNREACHABLE_TIMEOUT
from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.session import LABEL_LENGTH, CreateSessionResponseDto

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids and credentials

FIRST_CONTACT_TIMEOUT: Final = 30.0
"""Seconds for which calls are retried to a server that has never answered: its address may be wrong."""
CLOSE_TIMEOUT: Final = 5.0
"""Seconds that ending a session may take. If it fails, the server ends the session for lack of heartbeats."""
UNKNOWN_NAME_TRIES: Final = 4
"""How often an unknown host name is looked up before the first response."""
LONGEST_SILENCE: Final = 45.0
"""Read timeout of a stream, in seconds: the server sends something at least every 15."""
SLOW_ANSWER: Final = 1.8
"""Seconds without a response after which the user is notified."""
FIRST_CONNECT_TIMEOUT: Final = 1.5
"""Connect timeout of the first attempt, in seconds. It doubles with each attempt, up to the request timeout."""
FIRST_BACK_OFF: Final = 0.2
LONGEST_BACK_OFF: Final = 5.0
"""First and longest delay between two attempts, in seconds. The delay doubles with each attempt."""

RESTARTING: Final = frozenset({408, 429, 502, 503, 504, *range(520, 525)})
"""Statuses of a draining server, or of a proxy that cannot reach its server or limits requests. They are retried."""
TIMED_OUT: Final = frozenset({408, 504, 524})
"""Statuses of a proxy that waited too long for the server."""
GONE: Final = frozenset({httpx.codes.NOT_FOUND, httpx.codes.GONE})
"""Statuses of the server for a session that has ended."""

_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)

_log = logging.getLogger(__name__)
_ours: ContextVar[bool] = ContextVar("neops_remote_lab_request", default=False)


def _is_not_ours(_: logging.LogRecord) -> bool:
    return not _ours.get()


# httpx logs the address of each request. Ours contain session ids, which `_log` shortens.
logging.getLogger("httpx").addFilter(_is_not_ours)


@dataclass
class _Attempts:
    """State of the attempts of one call. Times are on the connection's clock."""

    began: float
    until: float | None
    slow: bool
    quiet: bool
    number: int = 0
    trouble_since: float | None = None
    delay: float = FIRST_BACK_OFF


class ServerConnection:
    """Calls the server's HTTP API, and retries while the server restarts. Thread-safe.

    Args:
        base_url: the server's address, including a path prefix if a proxy adds one.
        request_timeout: seconds to wait for one response.
        credentials: credentials; those that are None come from the environment.
        unreachable_timeout: seconds for which calls to an unreachable server are retried.
        on_trouble: called, from any thread, with a message when the server becomes unreachable, regularly while it
            is, and when it answers again; without it the messages are logged as warnings.
        name: name of the address in messages, such as its variable.
        transport: httpx transport to use instead of the network.
        clock: source of time.
        pause: sleeps for a number of seconds.

    Attributes:
        access: address, credentials, proxy and certificates.
        base_url: the server's address, without credentials and without a trailing slash.

    Raises:
        InvalidSetting: the address, the credentials, or a proxy or certificate of the environment is wrong.
    """

    def __init__(
        self,
        base_url: str,
        request_timeout: float = REQUEST_TIMEOUT,
        *,
        credentials: Credentials | None = None,
        unreachable_timeout: float = UNREACHABLE_TIMEOUT,
        on_trouble: Callable[[str], None] | None = None,
        name: str = "base_url",
        transport: httpx.BaseTransport | None = None,
        clock: Clock | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.access = Access(base_url, (credentials or Credentials()).over(Credentials.read()), name=name)
        self.base_url = self.access.url
        self._request_timeout = request_timeout
        self._unreachable_timeout = unreachable_timeout
        self._http = self.access.client(transport)
        self._clock = clock or Clock()
        self.pause = pause or threading.Event().wait
        self._notices = Notices(on_trouble or _log.warning, self.now)
        self._answered = False
        self._gave_up = False

    def now(self) -> float:
        """Current time on this connection's clock, in monotonic seconds; deadlines are on this clock."""
        return self._clock.monotonic()

    def call(
        self,
        method: str,
        path: str,
        *,
        until: float | None = None,
        slow: bool = False,
        held: float = 0,
        quiet: bool = False,
        once: bool = False,
        **request: Any,
    ) -> httpx.Response:
        """Send a request, and repeat it while the server is unreachable or restarting.

        Retries end after the unreachable timeout, or earlier if the server has never answered. From then on each call
        is tried once, until the server answers again.

        Args:
            method: HTTP method.
            path: path below the base URL.
            until: time on this connection's clock after which the request is not repeated.
            slow: wait for the response until that time, instead of the request timeout.
            held: duration of the requested long poll, in seconds.
            quiet: a background call: do not notify the user of problems, which foreground calls report.
            once: the request must not arrive twice: repeat it only if it did not arrive, or a draining server
                refused it.
            request: further arguments for `httpx.Client.request`.

        Returns:
            The response with any status; one of `RESTARTING` only when the time is up.

        Raises:
            httpx.TransportError: no response in time, or a permanent error such as an untrusted certificate.
        """
        attempts = _Attempts(self.now(), until, slow, quiet)
        while True:
            sent = self.now()
            try:
                response = self._send(method, path, attempts, held, request)
            except httpx.TransportError as error:
                reason = failures.reason_of(error, self.access)
                self._count(attempts, sent, was_reached=slow and not isinstance(error, _NOT_CONNECTED))
                has_arrived = once and not isinstance(error, _NOT_CONNECTED)
                if has_arrived or self._is_hopeless(error, attempts) or self._is_over(attempts):
                    raise self._explained(error, attempts.began) from None  # the cause shows addresses
                wait = attempts.delay
            else:
                if response.status_code not in ({httpx.codes.SERVICE_UNAVAILABLE} if once else RESTARTING):
                    self._reached()
                    return response
                self._answered = True  # perhaps not by a lab server, but the address is reachable
                self._count(attempts, sent, was_reached=(slow or held > 0) and response.status_code in TIMED_OUT)
                if self._is_over(attempts):
                    return response
                reason = f"{response.status_code}: {detail_of(response)}"
                wait = retry_after(response, attempts.delay, self._clock.now())
            _log.debug("%s %s: %s; trying again", method, without_session(path), reason)
            self._pause(attempts, wait, reason)

    def try_once(self, method: str, path: str, *, timeout: float, **request: Any) -> httpx.Response:
        """Send a request once, without notifying the user of problems.

        Args:
            method: HTTP method.
            path: path below the base URL.
            timeout: seconds for each step of the request.
            request: further arguments for `httpx.Client.request`.

        Raises:
            httpx.TransportError: no response.
        """
        return self.call(method, path, until=self.now() - 1, quiet=True, **request | {"timeout": timeout})

    @contextlib.contextmanager
    def stream(self, path: str, **request: Any) -> Iterator[httpx.Response]:
        """GET a streaming response, without retries. The body of an error response is already read.

        Args:
            path: path below the base URL.
            request: further arguments for `httpx.Client.stream`.

        Raises:
            httpx.TransportError: no response, or the connection broke.
        """
        began = self.now()
        timeout = httpx.Timeout(self._request_timeout, read=max(self._request_timeout, LONGEST_SILENCE))
        try:
            with (
                _without_httpx_log(),
                self._http.stream("GET", path, timeout=timeout, extensions={CALL_PATH: path}, **request) as response,
            ):
                if not response.is_success:
                    response.read()
                yield response
        except httpx.TransportError as error:
            raise self._explained(error, began) from None  # the cause shows addresses

    def _send(
        self, method: str, path: str, attempts: _Attempts, held: float, request: dict[str, Any]
    ) -> httpx.Response:
        attempts.number += 1
        usual: dict[str, Any] = {"timeout": self._limits(attempts), "extensions": {CALL_PATH: path}}
        late = None if attempts.slow or attempts.quiet else held + SLOW_ANSWER
        with self._notices.when_late(self.access, late, self._end_of(attempts)), _without_httpx_log():
            response = self._http.request(method, path, **usual | request)
        _log.debug("%s %s: %d", method, without_session(path), response.status_code)
        return response

    def _limits(self, attempts: _Attempts) -> httpx.Timeout:
        until = self.now() + self._request_timeout if attempts.until is None else attempts.until
        left = max(until - self.now(), 1)  # the last attempt needs some time too
        usual = min(self._request_timeout, left)
        connect = min(FIRST_CONNECT_TIMEOUT * 2 ** min(attempts.number - 1, 10), usual)
        return httpx.Timeout(usual, connect=connect, read=left if attempts.slow else usual)

    def _pause(self, attempts: _Attempts, seconds: float, reason: str) -> None:
        end = self._end_of(attempts)
        if not attempts.quiet:
            self._notices.trouble(f"no answer from {self.access}: {reason}", attempts.trouble_since, end)
        self.pause(min(seconds, max(end - self.now(), 0)))
        attempts.delay = min(2 * attempts.delay, LONGEST_BACK_OFF)

    # When to give up

    def _count(self, attempts: _Attempts, sent: float, *, was_reached: bool) -> None:
        """Record a failed attempt. If a long call failed after a while, the server was reachable at first."""
        if was_reached and self.now() - sent > LONGEST_BACK_OFF:
            attempts.trouble_since = self.now()
        elif attempts.trouble_since is None:
            attempts.trouble_since = sent

    def _end_of(self, attempts: _Attempts) -> float:
        tolerance = self._unreachable_timeout
        if not self._answered:
            tolerance = min(tolerance, FIRST_CONTACT_TIMEOUT)
        end = (self.now() if attempts.trouble_since is None else attempts.trouble_since) + tolerance
        return end if attempts.until is None else min(end, attempts.until)

    def _is_over(self, attempts: _Attempts) -> bool:
        if attempts.until is not None and self.now() >= attempts.until:
            return True
        if not attempts.quiet and (self._gave_up or self.now() >= self._end_of(attempts)):
            self._gave_up = True
        return self._gave_up

    def _is_hopeless(self, error: httpx.TransportError, attempts: _Attempts) -> bool:
        tries = attempts.number >= UNKNOWN_NAME_TRIES and not self._answered
        return failures.cannot_heal(error) or (tries and failures.is_unknown_name(error))

    def _reached(self) -> None:
        self._answered, self._gave_up = True, False
        self._notices.over(self.access)

    def _explained(self, error: httpx.TransportError, began: float) -> httpx.TransportError:
        tried, reason = self.now() - began, failures.reason_of(error, self.access)
        message = f"no answer from {self.access} in {tried:.0f} s: {reason}"
        return type(error)(message, request=httpx.Request("GET", self.base_url))

    # Calls shared by the client and the controller of a pytest-xdist run

    def join(self, labels: dict[str, str], key: str, until: float | None = None) -> str:
        """Join the queue and return the session id. A repeated join with the same key is the same session.

        Args:
            labels: `client` and `purpose`, of any length and with any characters.
            key: idempotency key.
            until: time on this connection's clock after which the call is not repeated.

        Raises:
            httpx.HTTPStatusError: the server refused.
            httpx.DecodingError: the response is not from a lab server.
            httpx.TransportError: no response in time, or a permanent error.
        """
        body = {name: one_line(label)[:LABEL_LENGTH] for name, label in labels.items()}
        headers = {"Idempotency-Key": _as_header(key)}
        response = self.call("POST", "/session", until=until, json=body, headers=headers)
        raise_for_error(response)
        return parsed(response, CreateSessionResponseDto).session_id

    def release(self, session_id: str, reference: str | None, until: float | None = None) -> httpx.Response:
        """Release the reference of the acquire with this idempotency key; without a key, the newest one."""
        return self.call("POST", "/lab/release", until=until, headers=headers_of(session_id, reference))

    def end_session(self, session_id: str) -> None:
        """End a session within a few seconds. Network and server errors are only logged, because the server ends a
        session without heartbeats anyway.
        """
        until = self.now() + CLOSE_TIMEOUT
        try:
            headers = headers_of(session_id)
            response = self.call("DELETE", f"/session/{session_id}", until=until, quiet=True, headers=headers)
            if response.status_code not in GONE:
                raise_for_error(response)
        except httpx.HTTPError as error:
            _log.warning("could not end session %s: %s", session_id[:8], error)

    def end_session_of(self, key: str) -> None:
        """As `end_session`, for a session of which only the idempotency key of its join is known."""
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


@contextlib.contextmanager
def _without_httpx_log() -> Iterator[None]:
    mark = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(mark)


def _as_header(key: str) -> str:
    plain = key.isascii() and key.isprintable() and key == key.strip()
    return key if plain else hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def headers_of(session_id: str, idempotency_key: str | None = None) -> dict[str, str]:
    """Headers of a call of a session, optionally with an idempotency key."""
    headers = {"X-Session-ID": session_id}
    return headers if idempotency_key is None else headers | {"Idempotency-Key": idempotency_key}
