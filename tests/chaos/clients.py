"""Clients that join, wait, use a lab and leave repeatedly, and retry calls that fail because of a fault.

Some send their topology for checking while they wait, and some read the log or open a console while they use the lab.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import httpx

from tests.chaos.held_calls import CONNECT_SECONDS, HELD_LIMIT, RETRY_DELAY, HeldCalls
from tests.chaos.journal import FactKind, Journal
from tests.fakes import topology_text
from tests.server import TLS

TOPOLOGIES: Final = [topology_text(nodes=2), topology_text(nodes=3)]
RETRY_TIMEOUT: Final = 300.0
"""Seconds for which a client retries a call. A long poll may fail many times in a row."""
ANSWER_SECONDS: Final = 8.0
"""Seconds after which a client sends a call again, to any server."""
WAITS: Final = (0.1, 0.5, 1, 20)
"""Seconds of long polls."""
CHECK_SHARE: Final = 0.8
"""The share of the sessions that send their topology for checking."""
LOG_SHARE: Final = 0.4
"""The share of the labs whose log is read while they are used."""
CONSOLE_SHARE: Final = 0.15
"""The share of the labs in which a console is opened."""


class SessionEnded(Exception):
    """The session of a client has ended, and not because the client has ended it."""


class Client:
    """A client of one queue, which may be served by several servers."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        urls: Sequence[str],
        journal: Journal,
        seed: int,
        stop: threading.Event,
        *,
        lab_share: float = 0.9,
    ) -> None:
        """`lab_share` is the share of the sessions in which the client waits for a lab."""
        self._http, self._urls, self._journal, self._stop, self._lab_share = http, urls, journal, stop, lab_share
        self._random = random.Random(seed)  # noqa: S311 - nothing here is a secret
        self._asked = 0.0

    async def run(self) -> None:
        """Use one session after another until `stop` is set, and end the last one."""
        while not self._stop.is_set():
            await self._visit()

    async def _visit(self) -> None:
        answer = await self._call("POST", "/session", key=uuid.uuid4().hex, json={"client": "chaos"})
        if answer.status_code != httpx.codes.CREATED:
            self._unexpected("", answer)
            return
        session_id = str(answer.json()["session_id"])
        self._journal.note(FactKind.JOINED, session_id, asked=self._asked)
        held = HeldCalls(self._http, self._urls, self._journal, self._random, session_id)
        try:
            if self._random.random() < self._lab_share:
                await self._use_labs(session_id, held)
        except SessionEnded:
            pass
        else:
            await self._leave(session_id)
        await held.ended()

    async def _leave(self, session_id: str) -> None:
        self._journal.note(FactKind.LEAVING, session_id)
        answer = await self._call("DELETE", f"/session/{session_id}")
        # 404: the answer to an earlier attempt was lost, or the session ended at this moment
        if answer.status_code == httpx.codes.NO_CONTENT or _has_ended(answer):
            self._journal.note(FactKind.LEFT, session_id)
        else:
            self._unexpected(session_id, answer)

    async def _use_labs(self, session_id: str, held: HeldCalls) -> None:
        first, *others = self._random.choices(range(len(TOPOLOGIES)), k=self._random.randint(1, 2))
        if self._random.random() < CHECK_SHARE:
            held.begin("a topology check", self._check(session_id, first))
        key = await self._acquire(session_id, first)
        for number in others:
            # Another topology gets the slot only once the one before was released.
            if key is None:
                return
            await self._use_lab(session_id, held, key, first, release=True)
            first, key = number, await self._acquire(session_id, number)
        if key is not None:
            await self._use_lab(session_id, held, key, first, release=self._random.random() < 0.7)

    async def _check(self, session_id: str, number: int) -> None:
        """Send a topology for checking."""
        files = {"topology": ("chaos.yml", TOPOLOGIES[number])}
        answer = await self._call("POST", "/topology/check", session_id=session_id, files=files)
        if answer.status_code == httpx.codes.OK:
            self._journal.note(FactKind.CHECKED, session_id)
            if answer.json()["nodes"] != len(_node_names(number)):
                self._unexpected(session_id, answer)
        elif not (answer.status_code == httpx.codes.CONFLICT or _has_ended(answer)):  # 409: it is active
            self._unexpected(session_id, answer)

    async def _use_lab(self, session_id: str, held: HeldCalls, key: str, number: int, *, release: bool) -> None:
        """Read the log and the devices of a lab, and open a console. Then perhaps release the lab."""
        if self._random.random() < LOG_SHARE:
            held.read_log()
        if self._random.random() < CONSOLE_SHARE:
            await held.open_console()
        answer = await self._call("GET", "/lab/devices", session_id=session_id)
        if answer.status_code == httpx.codes.OK:
            if _names(answer.json()) != _node_names(number):
                self._unexpected(session_id, answer)
        elif not (answer.status_code == httpx.codes.NOT_FOUND and "lost" in answer.text):
            self._refused(session_id, answer)
        if release:
            self._journal.note(FactKind.RELEASING, session_id, key)
            answer = await self._call("POST", "/lab/release", session_id=session_id, key=key)
            if answer.status_code == httpx.codes.NO_CONTENT:
                self._journal.note(FactKind.RELEASED, session_id, key)
            elif answer.status_code != httpx.codes.NOT_FOUND:
                self._refused(session_id, answer)

    async def _acquire(self, session_id: str, number: int) -> str | None:
        """Acquire a lab. Returns the key of the acquire, or None if `stop` was set before the session became active."""
        key = uuid.uuid4().hex
        while await self._wait(session_id):
            files = {"topology": ("chaos.yml", TOPOLOGIES[number])}
            answer = await self._call("POST", "/lab", session_id=session_id, key=key, files=files)
            if answer.status_code == httpx.codes.OK:
                self._journal.note(FactKind.ACQUIRED, session_id, key)
                if _names(answer.json()["devices"]) != _node_names(number):
                    self._unexpected(session_id, answer)
                return key
            if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY and "Idempotency-Key" in answer.text:
                key = uuid.uuid4().hex  # it was granted, the answer died with the server, and so did the lab
            else:
                self._refused(session_id, answer)
                await asyncio.sleep(RETRY_DELAY)
        return None

    async def _wait(self, session_id: str) -> bool:
        while not self._stop.is_set():
            wait = self._random.choice(WAITS)
            held_for = wait if wait > ANSWER_SECONDS else None
            answer = await self._call("GET", f"/session/{session_id}", held_for=held_for, params={"wait": wait})
            if answer.status_code != httpx.codes.OK:
                self._refused(session_id, answer)
            elif answer.json()["status"] == "active":
                self._journal.note(FactKind.ACTIVE, session_id)
                return True
        return False

    def _refused(self, session_id: str, answer: httpx.Response) -> None:
        """Record a refused call. Raises `SessionEnded` if the session has ended."""
        if _has_ended(answer):
            self._journal.note(FactKind.ENDED, session_id)
            raise SessionEnded
        if answer.status_code != httpx.codes.LOCKED:  # the session waits again, because its host was silent
            self._unexpected(session_id, answer)

    def _unexpected(self, session_id: str, answer: httpx.Response) -> None:
        said = f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:300]}"
        self._journal.note(FactKind.UNEXPECTED, session_id, said)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        key: str = "",
        session_id: str = "",
        held_for: float | None = None,
        **request: Any,
    ) -> httpx.Response:
        """Send a call to any server, again after each 503 or broken connection. Returns the first other response.

        A call that a server may hold for some seconds is not sent again before it hangs, which is recorded.
        """
        answer_seconds = ANSWER_SECONDS if held_for is None else held_for + HELD_LIMIT
        patience = httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS)
        headers = {name: value for name, value in (("X-Session-ID", session_id), ("Idempotency-Key", key)) if value}
        deadline = time.monotonic() + RETRY_TIMEOUT
        self._asked = time.time()
        while True:
            url = self._random.choice(self._urls) + path
            try:
                answer = await self._http.request(method, url, headers=headers, timeout=patience, **request)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
                problem = answer.text
            except httpx.TransportError as error:
                problem = repr(error)
                if held_for is not None and isinstance(error, httpx.ReadTimeout):
                    self._journal.note(FactKind.HUNG, session_id, f"{method} {url}: no answer for {answer_seconds:g} s")
            if time.monotonic() > deadline:
                raise AssertionError(f"{method} {path}: {problem}")
            await asyncio.sleep(RETRY_DELAY)


def _has_ended(answer: httpx.Response) -> bool:
    """Whether the answer says that the session has ended, before the call or during it."""
    over = ("the session has ended", "its session has ended", "its session ended")
    return answer.status_code in {httpx.codes.NOT_FOUND, httpx.codes.GONE} and any(text in answer.text for text in over)


def _node_names(number: int) -> list[str]:
    """The names of the nodes of a topology."""
    return [f"r{count}" for count in range(1, number + 3)]


def _names(devices: list[dict[str, Any]]) -> list[str]:
    return [device["name"] for device in devices]


@contextmanager
def working_clients(
    urls: Sequence[str], journal: Journal, seed: int, count: int, stop: threading.Event, *, lab_share: float = 0.9
) -> Iterator[None]:
    """Clients that work in another thread until the context ends. An error of one ends all, and is raised then."""

    async def work() -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=count)
        async with httpx.AsyncClient(verify=TLS, limits=limits) as http, asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(Client(http, urls, journal, seed + number, stop, lab_share=lab_share).run())

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(asyncio.run, work())
        working.add_done_callback(lambda _: stop.set())
        try:
            yield
        finally:
            stop.set()
        working.result()
