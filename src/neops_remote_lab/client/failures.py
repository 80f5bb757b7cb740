"""Why a server cannot be reached, in words, and whether trying again can help."""

import socket
import ssl

import httpx

from neops_remote_lab.client.access import Access
from neops_remote_lab.core.text import one_line

_CUT_SHORT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""TLS errors of a server that ends in the middle of a handshake."""
_HEALING = ("408", "429")


def cannot_heal(error: httpx.TransportError) -> bool:
    """Whether the same request can only fail again."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return True
    if isinstance(error, httpx.ProxyError):  # its text begins with the proxy's status
        return str(error).startswith("4") and not str(error).startswith(_HEALING)
    cause = _cause(error)
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, _CUT_SHORT)


def is_unknown_name(error: httpx.TransportError) -> bool:
    """Whether DNS says that there is no such host, in contrast to DNS that does not answer."""
    cause = _cause(error)
    return isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN


def reason_of(error: httpx.TransportError, access: Access) -> str:
    """What has happened and, where it is known, what to do."""
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
    """The exception of the TLS library or of DNS that is behind one of httpx's, else that one."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLError | socket.gaierror):
            return link
        link = link.__cause__ or link.__context__
    return error
