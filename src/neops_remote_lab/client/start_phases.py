"""Shows netlab's progress while an acquire waits for the start of a lab."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import httpx

from neops_remote_lab.client.answers import parsed
from neops_remote_lab.client.connection import ServerConnection, headers_of
from neops_remote_lab.client.events import ACCEPT, END, events_of
from neops_remote_lab.client.session import Session
from neops_remote_lab.models.lab import LabStatusDto

__tracebackhide__ = True  # pytest shows the arguments of a frame; here they contain session ids

FIRST_LOOK: Final = 1.0
"""Seconds before the first check: most acquires that share a lab are done by then."""
LOOK_EVERY: Final = 1.0
"""Seconds between two checks whether the start has begun."""
CALL_TIMEOUT: Final = 10.0
TEARDOWN: Final = "teardown of the lab before"
"""The phase while an acquire waits for the teardown of an earlier lab."""
_PHASE: Final = re.compile(
    r"Creating configuration files|Checking virtualization provider installation|Starting .{1,40} nodes"
    r"|Deploying initial device configurations|OK: Lab devices configured"
)


def phase_of(line: str) -> str | None:
    """The phase that begins with a line of netlab's output, as netlab calls it; None for any other line."""
    text = line.strip()
    if not _PHASE.fullmatch(text):
        return None
    text = text.removeprefix("OK: ")
    return text[:1].lower() + text[1:]


class StartPhases:
    """Follows the log of a starting lab in a background thread. Errors are ignored.

    Args:
        server: the connection to the server.
        session: the session that the lab belongs to.
        tell: called from that thread at the beginning of each phase.
    """

    def __init__(self, server: ServerConnection, session: Session, tell: Callable[[str], object]) -> None:
        self._server = server
        self._session = session
        self._tell = tell
        self._lock = threading.Lock()
        self._open: httpx.Response | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        """Report phases while the body of the context waits for its lab."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="remote-lab-phases", daemon=True)
        with suppress(RuntimeError):  # threads cannot be started at interpreter exit
            thread.start()
        try:
            yield
        finally:
            done.set()
            self._cut()
            if thread.is_alive():
                thread.join(FIRST_LOOK)

    def _watch(self, done: threading.Event) -> None:
        wait = FIRST_LOOK
        while not done.wait(wait):
            wait = LOOK_EVERY
            try:
                state = self._lab_state()
                if state == "stopping":
                    self._say(TEARDOWN, done)
                elif state == "starting":
                    self._follow(done)
            except (httpx.HTTPError, RuntimeError) as error:  # httpx raises RuntimeError if the client was closed
                if isinstance(error, RuntimeError) and not done.is_set():
                    raise

    def _lab_state(self) -> str:
        headers = headers_of(self._session.session_id)
        response = self._server.try_once("GET", "/lab", timeout=CALL_TIMEOUT, headers=headers)
        return parsed(response, LabStatusDto).state if response.is_success else "none"

    def _follow(self, done: threading.Event) -> None:
        headers = headers_of(self._session.session_id) | ACCEPT
        with self._server.stream("/lab/log", headers=headers) as answer:
            if not answer.is_success:
                return
            with self._lock:
                self._open = answer
            try:
                for event in events_of(answer):
                    if done.is_set() or event.kind == END:
                        return
                    if (phase := phase_of(event.data)) is not None:
                        self._say(phase, done)
            finally:
                with self._lock:
                    self._open = None

    def _say(self, phase: str, done: threading.Event) -> None:
        if not done.is_set():
            self._tell(phase)

    def _cut(self) -> None:
        """Close the stream, which would last as long as the lab."""
        with self._lock:
            stream = self._open.extensions.get("network_stream") if self._open is not None else None
            connection = stream.get_extra_info("socket") if stream is not None else None
            if connection is not None:
                with suppress(OSError):
                    # Not the method of a TLS socket, which would free the TLS state that the reading thread uses.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
