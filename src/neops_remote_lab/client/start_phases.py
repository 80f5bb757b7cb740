"""What netlab does while an acquire waits for a lab that starts."""

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

__tracebackhide__ = True  # pytest shows the arguments of a frame, and here they hold session ids

FIRST_LOOK: Final = 1.0
"""Seconds until an acquire is looked at: most of those that share a lab are over by then."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at whether the lab has begun to start."""
CALL_TIMEOUT: Final = 10.0
TEARDOWN: Final = "teardown of the lab before"
"""The phase in which an acquire waits for the end of an earlier lab."""
_PHASE: Final = re.compile(
    r"Creating configuration files|Checking virtualization provider installation|Starting .{1,40} nodes"
    r"|Deploying initial device configurations|OK: Lab devices configured"
)


def phase_of(line: str) -> str | None:
    """The phase that a line of netlab's output begins, in netlab's words; None for any other line."""
    text = line.strip()
    if not _PHASE.fullmatch(text):
        return None
    text = text.removeprefix("OK: ")
    return text[:1].lower() + text[1:]


class StartPhases:
    """Follows the log of a lab that starts, in a thread of its own. A help, no duty: it tells of no trouble.

    Args:
        server: the way to the server.
        session: whose lab it is.
        tell: called from that thread with each phase as it begins.
    """

    def __init__(self, server: ServerConnection, session: Session, tell: Callable[[str], object]) -> None:
        self._server = server
        self._session = session
        self._tell = tell
        self._lock = threading.Lock()
        self._open: httpx.Response | None = None

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell the phases while the body waits for its lab."""
        done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), name="remote-lab-phases", daemon=True)
        with suppress(RuntimeError):  # at the end of the interpreter no thread can be started
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
            except (httpx.HTTPError, RuntimeError) as error:  # the latter by httpx, for a client that was closed
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
                for event, line in events_of(answer):
                    if done.is_set() or event == END:
                        return
                    if (phase := phase_of(line)) is not None:
                        self._say(phase, done)
            finally:
                with self._lock:
                    self._open = None

    def _say(self, phase: str, done: threading.Event) -> None:
        if not done.is_set():
            self._tell(phase)

    def _cut(self) -> None:
        """End the stream, which would go on for as long as the lab runs."""
        with self._lock:
            stream = self._open.extensions.get("network_stream") if self._open is not None else None
            connection = stream.get_extra_info("socket") if stream is not None else None
            if connection is not None:
                with suppress(OSError):
                    # not the method of a TLS socket, which would take the keys from the thread that reads
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
