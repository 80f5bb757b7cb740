"""`neops-remote-lab queue`: show the active sessions and the waiting ones."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Final

import httpx

from neops_remote_lab.cli.command import CREDENTIALS, Commands, add_url_flag, ended_by_signals, refuse, say
from neops_remote_lab.cli.lab_sessions import URL_SOURCE
from neops_remote_lab.cli.settings import server_url
from neops_remote_lab.cli.tables import table
from neops_remote_lab.client.answers import parsed, raise_for_error
from neops_remote_lab.client.connection import ServerConnection
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models.queue import QueueDto, QueueEntryDto

TIMEOUT: Final = 10.0
"""Seconds to wait for the response."""
WATCH_INTERVAL: Final = 2.0
"""Seconds between two requests with --watch."""
HEADINGS: Final = ("position", "session", "state", "since", "last seen", "client", "purpose", "topology")
SLOT_HEADINGS: Final = ("host", "slot")
"""Shown only if several sessions can be active at once."""
_CLEAR_SCREEN: Final = "\x1b[H\x1b[J"


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "queue",
        help="show who holds the lab, and who waits",
        description="Shows the active sessions, which hold the labs, and the waiting ones.",
        epilog=CREDENTIALS,
    )
    parser.add_argument("--watch", action="store_true", help=f"repeat every {WATCH_INTERVAL:g} s, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print the response of GET /queue as one line of JSON")
    add_url_flag(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the queue of a server, once or repeatedly.

    The exit status is 1 if the server does not answer, and 2 if a flag or a variable is wrong. `--watch` continues
    while the server does not answer.
    """
    try:
        server = ServerConnection(server_url() if options.url is None else options.url, name=URL_SOURCE)
    except ValueError as error:
        options.parser.error(str(error))
    shown = _json if options.json else text
    with server:
        if options.watch:
            clear = sys.stdout.isatty() and not options.json
            with ended_by_signals():
                _watch(server, shown, _CLEAR_SCREEN if clear else "")
        try:
            sys.stdout.write(shown(_queue(server)))
        except httpx.HTTPError as error:
            advice = "Is the server running there? Name another address with --url"
            refuse(one_line(f"no queue at {server.base_url}: {error}. {advice}"))


def text(queue: QueueDto) -> str:
    """The queue as a table. Labels and names of other users are escaped for the terminal."""
    if queue.quarantined:
        note = f"quarantined, no session is admitted: {one_line(queue.quarantined)}\n"
    else:
        note = "" if queue.sessions else "nobody waits, and nobody holds the lab\n"
    hidden = queue.length - len(queue.sessions)
    places = SLOT_HEADINGS if sum(host.slots for host in queue.hosts) > 1 else ()
    rows = table(HEADINGS + places, (_row(entry) + _place(entry)[: len(places)] for entry in queue.sessions))
    return note + (rows if queue.sessions else "") + (f"… and {hidden} more\n" if hidden else "")


def _watch(server: ServerConnection, shown: Callable[[QueueDto], str], before: str) -> None:
    """Print the queue repeatedly. If the screen cannot be cleared, print it only when it has changed."""
    printed = None
    while True:
        try:
            queue = _queue(server)
        except httpx.HTTPError as error:
            say(f"no queue at {server.base_url}: {error}")
        else:
            if before or _identity(queue) != printed:
                sys.stdout.write(before + shown(queue))
                sys.stdout.flush()
            printed = _identity(queue)
        time.sleep(WATCH_INTERVAL)


def _queue(server: ServerConnection) -> QueueDto:
    answer = server.try_once("GET", "/queue", timeout=TIMEOUT)
    raise_for_error(answer)
    return parsed(answer, QueueDto)


def _identity(queue: QueueDto) -> object:
    """The queue without its ages, which always change, for comparison."""
    ages = {"age_seconds", "active_seconds", "last_seen_seconds"}
    return queue.model_dump(exclude={"sessions": {"__all__": ages}})


def _json(queue: QueueDto) -> str:
    return json.dumps(queue.model_dump(mode="json")) + "\n"


def _row(entry: QueueEntryDto) -> tuple[str, ...]:
    since = entry.age_seconds if entry.active_seconds is None else entry.active_seconds
    times = (f"{since:.0f} s", f"{entry.last_seen_seconds:.0f} s ago")
    labels = (entry.client or "-", entry.purpose or "-", entry.topology or "-")
    return (str(entry.position), entry.session_id, entry.status, *times, *labels)


def _place(entry: QueueEntryDto) -> tuple[str, ...]:
    return one_line(entry.host or "-"), "-" if entry.slot is None else str(entry.slot)
