"""Explains why a server cannot be reached, and decides whether a retry can help."""

import socket
import ssl

import httpx

from neops_remote_lab.client.access import Access
from neops_remote_lab.core.text import one_line

_CUT_SHORT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""TLS errors caused by a server that ends during a handshake."""
_HEALING = ("408", "429")


def cannot_heal(error: httpx.TransportError) -> bool:
    """Whether a retry would fail too."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return True
    if isinstance(error, httpx.ProxyError):  # its text begins with the proxy's status
        return str(error).startswith("4") and not str(error).startswith(_HEALING)
    cause = _cause(error)
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT_SHORT)


def is_unknown_name(error: httpx.TransportError) -> bool:
    """Whether DNS reports that the host does not exist. A DNS failure does not count."""
    cause = _cause(error)
    return isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN


def reason_of(error: httpx.TransportError, access: Access) -> str:
    """A message that says what happened and, if known, what to do."""
    cause = _cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not accepted: {one_line(cause.verify_message)}; REMOTE_LAB_CA_FILE can name the "
            "authority to trust"
        )
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails: {cause.reason or one_line(str(cause))}{_advice(cause)}"
    if isinstance(cause, socket.gaierror):
        host = access.proxy.address.url.host if access.proxy else httpx.URL(access.url).host
        return f"the host name {host} cannot be looked up: {cause.strerror}"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy refuses: {one_line(str(error))}"
    if isinstance(error, httpx.ConnectTimeout):
        return "no connection in time"
    return one_line(str(error)) or ("timed out" if isinstance(error, httpx.TimeoutException) else type(error).__name__)


def _advice(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if "WRONG_VERSION" in reason or "HTTP_REQUEST" in reason:
        return "; does the server speak http:// rather than https://?"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason or "UNKNOWN_CA" in reason:
        return "; a client certificate may be missing or wrong (REMOTE_LAB_CLIENT_CERT)"
    return ""


def _cause(error: BaseException) -> BaseException:
    """The TLS or DNS exception that caused an httpx exception; otherwise the exception itself."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLError | socket.gaierror):
            return link
        link = link.__cause__ or link.__context__
    return error
