"""`neops-remote-lab down`: end the session of `up`, and its lab."""

import argparse

from neops_remote_lab.cli.command import CREDENTIALS, Commands, add_session_flags, say
from neops_remote_lab.cli.lab_sessions import connection, explained, find_kept, read_settings, shown
from neops_remote_lab.client import keeper
from neops_remote_lab.client.answers import raise_for_error
from neops_remote_lab.client.connection import GONE, headers_of
from neops_remote_lab.client.state import StateDirectory


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command and its flags."""
    parser = commands.add_parser(
        "down",
        help="end the session of `up`, and its lab",
        description="Ends the session of `up` and tears its lab down. Without such a session it does nothing.",
        epilog=CREDENTIALS,
    )
    add_session_flags(parser)
    return parser


def run(options: argparse.Namespace) -> None:
    """End the session of `up`.

    If the server does not answer, the exit status is 1, and the session is kept.
    """
    with explained(options):
        settings = read_settings()
        url, kept = find_kept(options, settings)
        if kept is None:
            say(f"no session with {shown(url)} is kept")
            return
        if kept.origin == "pytest" and keeper.is_kept(kept):
            StateDirectory().forget(kept)
            say("the test run lets its lab go, and goes on")
            return
        with connection(url, settings) as server:
            answer = server.call("DELETE", f"/session/{kept.session_id}", headers=headers_of(kept.session_id))
        if answer.status_code not in GONE:
            raise_for_error(answer)
        StateDirectory().forget(kept)
        keeper.stop(kept)
        say("the session has ended, and its lab is torn down")
