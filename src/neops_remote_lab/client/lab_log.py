"""Follows netlab's output for the lab of a session."""

from collections.abc import Callable, Iterator
from typing import Final

import httpx

from neops_remote_lab.client.answers import raise_for_error
from neops_remote_lab.client.connection import GONE, ServerConnection, headers_of
from neops_remote_lab.client.events import ACCEPT, END, Event, events_of
from neops_remote_lab.client.session import Session

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

RECONNECT_AFTER: Final = 1.0
"""Seconds from the end of a connection to the next one."""
LAB_IS_GONE: Final = "the lab is gone"
SHOWN_AGAIN: Final = "the server cannot continue the log where it broke off: it is shown again"


class LabLog:
    """The log of the running lab, or of the latest lab if that did not start.

    Args:
        server: the connection to the server.
        session: the session that the lab belongs to.
        tell: called with messages about the stream, such as its end.
    """

    def __init__(self, server: ServerConnection, session: Session, tell: Callable[[str], object]) -> None:
        self._server = server
        self._session = session
        self._tell = tell
        self._last_id = ""
        self._has_lines = False
        self._told = ""

    def follow(self) -> Iterator[str]:
        """Past and future lines until the lab has ended.

        If the connection breaks or the server restarts, the log is continued after the last line, once the server
        answers again. The retries are those of `ServerConnection.call`.

        Raises:
            SessionEnded: the server ended the session.
            httpx.HTTPStatusError: the server refused, for example because there is no log.
            httpx.TransportError: the server cannot be reached.
        """
        while True:
            try:
                for event in self._events():
                    if event.kind == END and not event.data:
                        self._tell(LAB_IS_GONE)
                        return
                    if event.kind == END:
                        self._tell_once(event.data)
                    elif self._is_of_another_lab(event):
                        self._tell(LAB_IS_GONE)
                        return
                    else:
                        self._last_id, self._has_lines, self._told = event.id, True, ""
                        yield event.data
            except httpx.TransportError:
                pass
            except httpx.HTTPStatusError as error:
                if self._has_lines and error.response.status_code in GONE:
                    self._tell(LAB_IS_GONE)
                    return
                raise
            self._server.pause(RECONNECT_AFTER)
            self._session.ask("GET", "/lab")  # retried until the server answers, and its labs are recovered
            if self._has_lines and not self._last_id:
                self._tell(SHOWN_AGAIN)

    def _events(self) -> Iterator[Event]:
        headers = headers_of(self._session.session_id) | ACCEPT | {"Last-Event-ID": self._last_id}
        with self._server.stream("/lab/log", headers=headers) as answer:
            raise_for_error(answer)
            yield from events_of(answer)

    def _tell_once(self, message: str) -> None:
        """Tell a message, unless it is repeated because the server has not ended yet."""
        if message != self._told:
            self._told = message
            self._tell(message)

    def _is_of_another_lab(self, event: Event) -> bool:
        """Whether another lab has started while there was no connection. An id begins with that of the lab."""
        return self._last_id.rpartition("-")[0] != event.id.rpartition("-")[0] and bool(self._last_id)
