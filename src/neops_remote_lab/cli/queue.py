"""`neops-remote-lab queue`: who holds the lab host, and who waits, in a terminal."""

import argparse
import sys

from neops_remote_lab.cli.command import Commands, refuse
from neops_remote_lab.cli.settings import server_url
from neops_remote_lab.core.text import one_line
from neops_remote_lab.models import QueueDto, QueueEntryDto

TIMEOUT = 10.0
"""Seconds for the answer."""
URL_SOURCE = "the address of --url, REMOTE_LAB_URL or NEOPS_REMOTE_LAB_PORT"
CELL_WIDTH = 60
"""Most characters of one cell; a longer one is cut."""
HEADINGS = ("position", "session", "state", "since", "last seen", "client", "purpose", "topology")


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "queue",
        help="show who holds the lab, and who waits",
        description="Shows who holds the lab, and who waits.",
        epilog="Credentials: a user name and a password in the address, REMOTE_LAB_TOKEN, REMOTE_LAB_CLIENT_CERT.",
    )
    parser.add_argument("--url", help="address of the server; REMOTE_LAB_URL, else the server of this host")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the queue of a server.

    The program's exit status is 1 when the server does not answer, and 2 when a flag or a variable is wrong.
    """
    try:
        queue = _queue(server_url() if options.url is None else options.url)
    except ValueError as error:
        options.parser.error(str(error))
    sys.stdout.write(table(queue))


def _queue(url: str) -> QueueDto:
    import httpx

    from neops_remote_lab.client.answers import parsed, raise_for_error
    from neops_remote_lab.client.connection import ServerConnection

    with ServerConnection(url, name=URL_SOURCE) as server:
        try:
            answer = server.try_once("GET", "/queue", timeout=TIMEOUT)
            raise_for_error(answer)
            return parsed(answer, QueueDto)
        except httpx.HTTPError as error:
            advice = "Is the server running there? Name another address with --url"
            refuse(one_line(f"no queue at {server.base_url}: {error}. {advice}"))


def table(queue: QueueDto) -> str:
    """The queue as lines of text. Labels and names come from other people: what a terminal would act on is escaped."""
    if queue.quarantined:
        note = f"quarantined, no session is admitted: {one_line(queue.quarantined)}\n"
    else:
        note = "" if queue.sessions else "nobody waits, and nobody holds the lab\n"
    rows = [HEADINGS, *map(_row, queue.sessions)] if queue.sessions else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    hidden = queue.length - len(queue.sessions)
    return note + "".join(f"{line}\n" for line in lines) + (f"… and {hidden} more\n" if hidden else "")


def _row(entry: QueueEntryDto) -> tuple[str, ...]:
    since = entry.age_seconds if entry.active_seconds is None else entry.active_seconds
    times = (f"{since:.0f} s", f"{entry.last_seen_seconds:.0f} s ago")
    labels = (entry.client or "-", entry.purpose or "-", entry.topology or "-")
    cells = (str(entry.position), entry.session_id, entry.status, *times, *labels)
    return tuple(one_line(cell, CELL_WIDTH) for cell in cells)
