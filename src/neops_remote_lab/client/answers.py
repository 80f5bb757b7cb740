"""Interprets HTTP responses of the server, or of a proxy or another service that answers in its place."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from neops_remote_lab.core.text import hide_secrets, one_line, printable_lines

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

T = TypeVar("T", bound=BaseModel)

CALL_PATH: Final = "neops_remote_lab_path"
"""The request extension that holds the path below the server's address."""
PAGE_LENGTH: Final = 200
"""Maximum length shown of a response that is not the server's."""
LONGEST_RETRY_AFTER: Final = 10.0
"""Maximum delay accepted from Retry-After, in seconds."""
PAGE_READ: Final = 16 * 1024
"""Number of characters of such a response that are searched for its first line."""
_SESSION_IN_PATH: Final = re.compile(r"(/session/[0-9a-f]{8})[0-9a-f-]+")


def detail_of(response: httpx.Response) -> str:
    """The error message: the server's `detail`, the target of a redirect, or the first line of a page."""
    if response.has_redirect_location:
        return _redirect(response)
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and body.get("detail"):
        return printable_lines(str(body["detail"]))
    text = _first_line(response) or response.reason_phrase or "no reason given"
    return text + _advice(response, text)


def raise_for_error(response: httpx.Response) -> None:
    """Raise `httpx.HTTPStatusError` with the server's error message, unless the call succeeded."""
    if response.is_success:
        return
    raise httpx.HTTPStatusError(
        f"{name_of(response)}: {response.status_code}: {detail_of(response)}",
        request=response.request,
        response=response,
    )


def parsed(response: httpx.Response, model: type[T]) -> T:
    """Parse the body of a successful response.

    Raises:
        httpx.DecodingError: the response is not from a lab server, but a login page, for example.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        text = _first_line(response) or "an empty answer"
        message = (
            f"{name_of(response)}: {response.status_code}: {text}: this is not a response of a lab server. "
            "Is the address right, and does a proxy ask for a login?"
        )
        raise httpx.DecodingError(message, request=response.request) from None


def name_of(response: httpx.Response) -> str:
    """Method and path of the call for display, without a whole session id."""
    return f"{response.request.method} {without_session(response.request.url.path)}"


def without_session(path: str) -> str:
    """A path with its session id shortened: whoever knows the whole id can use the lab."""
    return _SESSION_IN_PATH.sub(r"\1…", path)


def retry_after(response: httpx.Response, default: float, now: datetime | None = None) -> float:
    """Seconds until the call may be repeated, from Retry-After (a number or a date), limited; or the default."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:10]), LONGEST_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return default
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max((date - (now or datetime.now(UTC))).total_seconds(), 0), LONGEST_RETRY_AFTER)


def _redirect(response: httpx.Response) -> str:
    request = response.request
    try:
        to = request.url.join(response.headers["Location"])
    except (httpx.InvalidURL, ValueError):
        return "redirected to something that is not an address"
    shown = without_session(hide_secrets(str(to)))
    path = request.extensions.get(CALL_PATH, "")
    if path and shown.endswith(without_session(path)):
        return f"redirected to {shown}: set REMOTE_LAB_URL={shown.removesuffix(without_session(path))}"
    return (
        f"redirected to {shown}: if that is a login page, a proxy wants credentials (REMOTE_LAB_TOKEN, a user name and "
        "password in REMOTE_LAB_URL, or REMOTE_LAB_CLIENT_CERT); else set REMOTE_LAB_URL to where the server is"
    )


def _first_line(response: httpx.Response) -> str:
    text = response.text[:PAGE_READ]
    if "html" in response.headers.get("Content-Type", "") or text.lstrip()[:1] == "<":
        page = _Page()
        page.feed(text)
        text = "\n".join(page.pieces)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return one_line(line, PAGE_LENGTH)


def _advice(response: httpx.Response, text: str) -> str:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return " (credentials are missing or wrong: REMOTE_LAB_TOKEN, or a user name and password in REMOTE_LAB_URL)"
    if response.status_code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        return " (the proxy wants a user name and password in its variable, such as HTTP_PROXY)"
    if response.status_code == httpx.codes.BAD_REQUEST and "certificate" in text.lower():
        return " (a client certificate is missing or wrong: REMOTE_LAB_CLIENT_CERT and REMOTE_LAB_CLIENT_KEY)"
    if response.status_code == httpx.codes.BAD_REQUEST and "https" in text.lower():
        return " (set REMOTE_LAB_URL to an address with https://)"
    return ""


class _Page(HTMLParser):
    """Collects the visible text of an HTML page."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._hidden += tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in {"script", "style"} and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)
