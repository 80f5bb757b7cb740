"""Checks the form of addresses of servers and proxies, so that a mistake is reported before the first request."""

from typing import Final
from urllib.parse import urlsplit

HTTP: Final = ("http", "https")
"""The schemes of servers."""
INVALID: Final = "has no valid host name or port"


def trouble_with(text: str, schemes: tuple[str, ...] = HTTP) -> str | None:
    """What is wrong with the text of an address, as the end of a sentence about it; None if nothing is."""
    scheme, separator, rest = text.partition("://")
    if text != text.strip():
        return "begins or ends with a space or a line break"
    if " " in text or not text.isprintable():
        return "has a space, a control character or one that is not UTF-8"
    if not separator:
        return f"lacks the scheme ({schemes[0]}://)"
    if scheme.lower() not in schemes:
        return f"has another scheme than {' or '.join(schemes)}"
    return _trouble_with_rest(rest)


def _trouble_with_rest(rest: str) -> str | None:
    if "?" in rest or "#" in rest:
        return "has a query or a fragment (what follows ? or #; in a password write %3F or %23)"
    if rest.partition("/")[0].endswith(":"):
        return "lacks the port number after the colon"
    return None


def trouble_with_parts(host: str | None, port: int | None) -> str | None:
    """As `trouble_with`, for the parts of an address."""
    if not host:
        return "names no host"
    if port is not None and not 0 < port < 2**16:
        return "has no valid port"
    return None


def server_url(text: str) -> str:
    """A URL of a server as a setting: scheme (in lower case), host and port, without a slash at the end.

    Raises:
        ValueError: it is not such a URL, or has more parts; the message says which, and shows no credentials.
    """
    if trouble := trouble_with(text) or _trouble_with_server(text):
        raise ValueError(f"it {trouble}: give scheme, host and port alone, such as http://lab-1:8000")
    return urlsplit(text).geturl().rstrip("/")


def _trouble_with_server(text: str) -> str | None:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
        (host or "").encode("idna")  # as the DNS lookup will do
    except ValueError:
        return INVALID
    if "@" in url.netloc:
        return "has a user name or a password, but the callers' own credentials are used"
    if url.path.strip("/"):
        return "has a path"
    return trouble_with_parts(host, port)
