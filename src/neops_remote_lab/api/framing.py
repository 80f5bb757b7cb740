"""Strict HTTP/1.1 framing, in front of uvicorn's parser.

A proxy and uvicorn may interpret a malformed request differently (request smuggling), and both of uvicorn's parsers
accept some malformed requests. This module checks each head as a whole and passes only unambiguous requests on to the
parser. All others get 400, and the connection is closed. A chunked request is the last one of its connection, so the
interpretation of its chunks cannot affect a later request.

Requests of a connection are processed one at a time; pipelined data is not read meanwhile. A client that does not read
its responses is disconnected after a timeout.
"""

import asyncio
import importlib.util
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from neops_remote_lab.api.send_timeout import SendTimeout

MAX_HEAD_BYTES: Final = 65_536
"""Maximum size of the request line with all headers."""

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_HEAD = re.compile(
    rb"(?P<method>%b) [\x21-\x7e]+ HTTP/1\.(?P<minor>[01])\r\n(?:%b:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
    % (_TOKEN, _TOKEN)
)
_FRAMING = re.compile(rb"^(host|content-length|transfer-encoding|upgrade):(.*)\r$", re.IGNORECASE | re.MULTILINE)
_HOST = re.compile(rb"[\w.~!$&'()*+,;=:%\[\]-]*", re.ASCII)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_CLOSE: Final = (b"connection", b"close")


def body_length(head: bytes) -> int | None:
    """The length of the body that follows a head, in bytes; None for a chunked body.

    Args:
        head: request line and headers, including the empty line.

    Raises:
        ValueError: the head is malformed or ambiguous.
    """
    if (line := _HEAD.fullmatch(head)) is None:
        raise ValueError("the request line or a header line is malformed")
    found: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": [], b"upgrade": []}
    for name, value in _FRAMING.findall(head):
        found[name.lower()].append(value.strip(b" \t"))
    hosts, lengths, codings, upgrades = found.values()
    if len(hosts) > 1 or (not hosts and line["minor"] == b"1") or not all(map(_HOST.fullmatch, hosts)):
        raise ValueError("there must be one header Host, with the name of a host")
    if codings and lengths:
        raise ValueError("Content-Length and Transfer-Encoding exclude each other")
    if codings and (line["minor"] == b"0" or [coding.lower() for coding in codings] != [b"chunked"]):
        raise ValueError("the only Transfer-Encoding is chunked, in HTTP/1.1")
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise ValueError("there may be one header Content-Length, with a number")
    length = None if codings else int(lengths[0]) if lengths else 0
    # Behind a request for a WebSocket comes the other protocol: neither a body nor a further request may be meant.
    if any(b"websocket" in upgrade.lower() for upgrade in upgrades) and (
        (line["method"], line["minor"], length) != (b"GET", b"1", 0) or [*map(bytes.lower, upgrades)] != [b"websocket"]
    ):
        raise ValueError("a WebSocket is asked for by GET, in version 1.1, without a body, and by one header Upgrade")
    return length


if TYPE_CHECKING:

    class _Parser(SendTimeout, H11Protocol): ...
else:
    _Parser = object


class Framing(_Parser):
    """Mixin in front of one of uvicorn's protocol classes."""

    _ahead: bytearray
    """Received data that the parser has not got yet."""
    _body_left: int | None
    """Remaining bytes of the current request's body; None for chunks, until the end of the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Initialise the state of the connection."""
        self._ahead, self._body_left = bytearray(), 0
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop pending data."""
        self._ahead.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data of the current body on to the parser; buffer everything else."""
        self._unset_keepalive_if_required()
        if not self._ahead and (self._body_left is None or len(data) <= self._body_left):
            self._pass_body(data)
        elif not self.transport.is_closing():
            self._ahead += data
            self._go_on()

    def on_response_complete(self) -> None:
        """Continue with a pipelined request."""
        super().on_response_complete()
        self._go_on()

    def send_400_response(self, msg: str) -> None:
        """Refuse a body that the parser cannot read. If a response has begun, only close the connection."""
        if self.cycle is not None and self.cycle.response_started:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _go_on(self) -> None:
        while self._ahead and not self.transport.is_closing():
            if self._body_left != 0:
                count = len(self._ahead) if self._body_left is None else self._body_left
                data = bytes(self._ahead[:count])
                del self._ahead[:count]
                self._pass_body(data)
            elif self.cycle is not None and not self.cycle.response_complete:
                self.flow.pause_reading()
                return
            elif not self._take_head():
                return

    def _pass_body(self, data: bytes) -> None:
        if self._body_left is not None:
            self._body_left -= len(data)
        super().data_received(data)

    def _take_head(self) -> bool:
        """Pass the next head on to the parser. Returns False if it is incomplete or refused."""
        while self._ahead.startswith(b"\r\n"):  # some clients send a line break after the body
            del self._ahead[:2]
        end = self._ahead.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        if end < 4:
            if len(self._ahead) >= MAX_HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
            elif _BARE_LINE_FEED.search(self._ahead):
                self._refuse(HTTPStatus.BAD_REQUEST, "a line of the request does not end with CR LF")
            return False
        head = bytes(self._ahead[:end])
        del self._ahead[:end]
        try:
            self._body_left = body_length(head)
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return False
        super().data_received(head)
        if self._body_left is None and self.cycle is not None:
            self.cycle.keep_alive = False
            self.headers.append(_CLOSE)
        return self._still_here()

    def _still_here(self) -> bool:
        """Whether the connection is still HTTP. A WebSocket protocol that took it over gets the pending data."""
        follower = self.transport.get_protocol()
        if follower is self:
            return True
        self.stop_timer()
        if self._ahead and isinstance(follower, asyncio.Protocol):
            follower.data_received(bytes(self._ahead))
        return False

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        body = json.dumps({"detail": why}).encode()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, status.phrase.encode(), len(body), body)
        )
        self._ahead.clear()
        self.transport.close()


def protocol(parser: Literal["auto", "h11", "httptools"], send_timeout: float) -> type[asyncio.Protocol]:
    """The protocol class for the connections of a server.

    Args:
        parser: which of uvicorn's parsers to use; `auto` means httptools if it is installed.
        send_timeout: seconds after which a client that does not read its responses is disconnected.

    Raises:
        ImportError: the parser is not installed.
    """
    chosen: type[asyncio.Protocol] = H11Protocol
    if parser == "httptools" or (parser == "auto" and importlib.util.find_spec("httptools")):
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415 - may not be installed

        chosen = HttpToolsProtocol
    framed = type(f"Framed{chosen.__name__}", (Framing, SendTimeout, chosen), {"send_timeout": send_timeout})
    return cast("type[asyncio.Protocol]", framed)
