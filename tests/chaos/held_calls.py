"""Calls that last as long as a lab: event streams of its log, and consoles of its nodes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from tests.chaos.journal import FactKind, Journal

HELD_LIMIT: Final = 30.0
"""Seconds within which a call must end after its session or its own wait. No server is unreachable for so long: the
faults between two pauses of the fault injector take less, and so does a retransmission of TCP after them."""
RETRY_DELAY: Final = 0.05
"""Seconds between two attempts."""
CONNECT_SECONDS: Final = 1.0
"""Seconds after which a client tries another server."""
OPENING_SECONDS: Final = 3.0
"""Seconds for which a client waits for a console before it goes on."""
OVER: Final = frozenset({httpx.codes.NOT_FOUND, httpx.codes.LOCKED})
"""Refusals because the lab or the session has ended, or because the session waits again."""
LATER: Final = frozenset({httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS})
"""Refusals of a call that can succeed later."""
CONSOLE: Final = "/lab/devices/r1/console?command=cat"


@dataclass
class _Reading:
    """How far the log of a session was read."""

    last_id: str = ""
    """The id of the latest event. Even an empty one is sent, so that events have ids."""
    positions: dict[str, int] = field(default_factory=dict)
    """The position of the latest line, by the id of the lab."""


class HeldCalls:
    """The calls that the client of a session holds open, through any server, while it makes others."""

    def __init__(
        self, http: httpx.AsyncClient, urls: Sequence[str], journal: Journal, choice: random.Random, session_id: str
    ) -> None:
        self._http, self._urls, self._journal, self._choice = http, urls, journal, choice
        self._session_id = session_id
        self._headers = {"X-Session-ID": session_id}
        self._open: dict[asyncio.Task[None], str] = {}

    def read_log(self) -> None:
        """Begin to read the log of the session's lab, until the lab or the session ends."""
        self.begin("the event stream of the log", self._read_log())

    async def open_console(self) -> None:
        """Open a console, unless that takes too long, and begin to hold it open until it ends or breaks off."""
        opened = asyncio.Event()
        holding = self.begin("a console", self._hold_console(opened))
        opening = asyncio.create_task(opened.wait())
        await asyncio.wait({opening, holding}, timeout=OPENING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()

    def begin(self, what: str, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a call that is not waited for until the session has ended."""
        task = asyncio.create_task(call)
        self._open[task] = what
        return task

    async def ended(self) -> None:
        """Wait until all calls have ended, after the end of the session. Those that hang are recorded."""
        if not self._open:
            return
        ended, hanging = await asyncio.wait(self._open, timeout=HELD_LIMIT)
        for call in hanging:
            said = f"{self._open[call]} lasts for {HELD_LIMIT:g} s after the session"
            self._journal.note(FactKind.HUNG, self._session_id, said)
            call.cancel()
        for call in ended:
            call.result()
        self._open.clear()

    async def _read_log(self) -> None:
        reading, is_over = _Reading(), False
        while not is_over:
            is_over = await self._read_on(reading)
            await asyncio.sleep(RETRY_DELAY)

    async def _read_on(self, reading: _Reading) -> bool:
        """Continue to read where an earlier stream broke off. Returns whether the lab has ended."""
        headers = {**self._headers, "Accept": "text/event-stream", "Last-Event-ID": reading.last_id}
        patient = httpx.Timeout(None, connect=CONNECT_SECONDS)
        url = f"{self._choice.choice(self._urls)}/lab/log"
        try:
            async with self._http.stream("GET", url, headers=headers, timeout=patient) as answer:
                if answer.status_code == httpx.codes.OK:
                    return await self._read_events(answer, reading)
                said = (await answer.aread()).decode()
        except httpx.TransportError:
            return False
        self._refused(f"GET {url}", answer.status_code, said)
        return answer.status_code not in LATER

    async def _read_events(self, answer: httpx.Response, reading: _Reading) -> bool:
        is_end = False
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                self._note_line(value, reading)
            elif line == "event: end":
                is_end = True
            elif is_end:
                return not value  # otherwise it says why the stream is to be opened again
        return False

    def _note_line(self, event_id: str, reading: _Reading) -> None:
        """Record that a line of a lab's log has arrived. Each line arrives once, in order."""
        lab_id, _, position = event_id.rpartition("-")
        if lab_id not in reading.positions:
            self._journal.note(FactKind.STREAMED, self._session_id, lab_id)
        elif int(position) <= reading.positions[lab_id]:
            said = f"the event {event_id} came after {reading.last_id}"
            self._journal.note(FactKind.UNEXPECTED, self._session_id, said)
        reading.positions[lab_id], reading.last_id = int(position), event_id

    async def _hold_console(self, opened: asyncio.Event) -> None:
        url = self._choice.choice(self._urls) + CONSOLE
        try:
            async with connect(
                "ws" + url.removeprefix("http"),
                additional_headers=self._headers,
                compression=None,
                open_timeout=None,
                ping_interval=None,
                close_timeout=CONNECT_SECONDS,
            ) as console:
                self._journal.note(FactKind.CONSOLE_OPENED, self._session_id)
                opened.set()
                await console.wait_closed()
        except InvalidStatus as refused:
            self._refused(url, refused.response.status_code, bytes(refused.response.body or b"").decode())
        except (OSError, EOFError, WebSocketException):
            return  # the connection broke

    def _refused(self, call: str, status: int, said: str) -> None:
        if status not in OVER | LATER:
            self._journal.note(FactKind.UNEXPECTED, self._session_id, f"{call}: {status} {said[:300]}")
