"""`neops-remote-lab up`: start a lab for interactive work, until `down`."""

import argparse
import sys
from datetime import UTC, datetime

from filelock import Timeout

from neops_remote_lab.cli.command import (
    CREDENTIALS,
    PROGRAM,
    Commands,
    ExitStatus,
    add_lab_flags,
    add_session_flag,
    ended_by_signals,
    refuse,
    say,
)
from neops_remote_lab.cli.devices import summary
from neops_remote_lab.cli.lab_sessions import connection, explained, session_name, shown
from neops_remote_lab.cli.opening import LabOrder, queue_for
from neops_remote_lab.client import keeper
from neops_remote_lab.client.connection import GONE, headers_of
from neops_remote_lab.client.state import KeptSession, StateDirectory


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "up",
        help="start a lab that stays until `down`",
        description="Waits in the queue and starts a lab. Its session is kept alive until `down` ends it.",
        epilog=CREDENTIALS,
    )
    add_lab_flags(parser)
    add_session_flag(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """Start a lab, save its session for later commands, and print its devices.

    The exit status is 125 if the lab does not start, and 1 if a session of this name is kept already.
    """
    with ended_by_signals(), explained(options, ExitStatus.NO_LAB):
        order = LabOrder.read(options)
        state, name, url = StateDirectory(), session_name(options, order.settings), shown(order.url)
        lock = state.lock(url, name)
        _require_none(state, order, name)  # the background process of an ended session may still hold the lock
        try:
            lock.acquire(blocking=False)
        except Timeout:
            refuse(f"another `{PROGRAM} up` is at work on this session: choose another name with --session")
        _require_none(state, order, name)  # another `up` may have finished meanwhile
        opening = queue_for(order, f"{PROGRAM} up")
        client = opening.client
        kept = KeptSession(
            url=url,
            name=name,
            session_id=client.session_id,
            topology=str(order.topology.path.absolute()),
            kept_since=datetime.now(UTC),
        )
        try:
            state.save(kept)  # before the start, so that `log` can show its progress
            devices = opening.bring_up()
            lock.release()  # the background process acquires it
            keeper.start(kept, order.url)
        except BaseException:
            client.close()
            state.forget(kept)
            raise
        client.detach()
        sys.stdout.write(summary(devices))
        say(f"the lab stays up until `{PROGRAM} down`")


def _require_none(state: StateDirectory, order: LabOrder, name: str) -> None:
    """Exit if a session of this name is live. Remove the file of one that has ended."""
    kept = state.find(shown(order.url), name)
    if kept is None:
        return
    with connection(order.url, order.settings) as server:
        answer = server.call("GET", f"/session/{kept.session_id}", headers=headers_of(kept.session_id))
    if answer.status_code in GONE:
        state.forget(kept)
        keeper.stop(kept)
        return
    refuse(
        f"a session with {kept.url} is kept already, since {kept.kept_since:%Y-%m-%d %H:%M} UTC, with the lab of "
        f"{kept.topology}: end it with `{PROGRAM} down`, or choose another name with --session"
    )
