"""Finds the session that a command works with: that of `run` around it, or that of `up`."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from neops_remote_lab.cli.command import ExitStatus, refuse, say
from neops_remote_lab.cli.settings import ClientSettings, server_url
from neops_remote_lab.client import keeper
from neops_remote_lab.client.access import parse_address
from neops_remote_lab.client.connection import ServerConnection
from neops_remote_lab.client.exceptions import InvalidSetting, SessionEnded
from neops_remote_lab.client.keeper import KeeperFailed
from neops_remote_lab.client.session import Session
from neops_remote_lab.client.state import DEFAULT_NAME, KeptSession, StateDirectory

URL_SOURCE: Final = "the address of --url, REMOTE_LAB_URL or NEOPS_REMOTE_LAB_PORT"


@dataclass(frozen=True)
class CurrentSession:
    """An active session and the connection to its server.

    Attributes:
        url: the server's address, including credentials.
        settings: settings from the environment.
        kept: the saved session; None for a session of `neops-remote-lab run`.
    """

    server: ServerConnection
    session: Session
    url: str = field(repr=False)
    settings: ClientSettings
    kept: KeptSession | None

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request of the session. Raises as `Session.ask`. If the session is over, its file is removed."""
        with self.forgotten_when_over():
            return self.session.ask(method, path, **options)

    @contextmanager
    def forgotten_when_over(self) -> Iterator[None]:
        """Remove the file of the session if the body finds that the server has ended it."""
        try:
            yield
        except SessionEnded:
            if self.kept is not None:
                StateDirectory().forget(self.kept)
            raise


@contextmanager
def current_session(options: argparse.Namespace) -> Iterator[CurrentSession]:
    """The session of the `neops-remote-lab run` around this command, or that of `up`. Exits if there is none.

    If the process that keeps the session of `up` alive has died, for example at logout, a new one is started.

    Raises:
        InvalidSetting: a flag or a variable is wrong.
    """
    settings = read_settings()
    if settings.session_id and options.session is None:
        url, session_id, kept = options.url or server_url(), settings.session_id, None
    else:
        url, kept = find_kept(options, settings)
        if kept is None:
            refuse(f"no session with {shown(url)} is kept: `neops-remote-lab up TOPOLOGY` opens one", ExitStatus.NO_LAB)
        session_id = kept.session_id
    with connection(url, settings) as server:
        if kept is not None:
            _keep_again(kept, url)
        session = Session(server)
        session.session_id = session_id
        yield CurrentSession(server, session, url, settings, kept)


def find_kept(options: argparse.Namespace, settings: ClientSettings) -> tuple[str, KeptSession | None]:
    """The server's address, and the saved session on that server, if any.

    If neither a flag nor a variable names a server, it is the server of the only saved session with that name.
    """
    state, name = StateDirectory(), session_name(options, settings)
    url = options.url or settings.url
    if url is None:
        found = [kept for kept in state if kept.name == name]
        if len(found) > 1:
            refuse(f"sessions with several servers are kept: choose with --url {' or '.join(k.url for k in found)}")
        if found:
            return found[0].url, found[0]
        url = server_url()
    return url, state.find(shown(url), name)


def session_name(options: argparse.Namespace, settings: ClientSettings) -> str:
    """The name of the session, from the flag, the environment or the default."""
    return options.session or settings.session or DEFAULT_NAME


def connection(url: str, settings: ClientSettings) -> ServerConnection:
    """A connection to a server that reports problems on standard error."""
    return ServerConnection(
        url,
        settings.request_timeout,
        unreachable_timeout=settings.unreachable_timeout,
        on_trouble=say,
        name=URL_SOURCE,
    )


def read_settings() -> ClientSettings:
    """Read the settings from the environment.

    Raises:
        InvalidSetting: a variable is wrong.
    """
    try:
        return ClientSettings.read()
    except ValueError as error:
        raise InvalidSetting(str(error)) from None


@contextmanager
def explained(options: argparse.Namespace, status: int = ExitStatus.FAILED) -> Iterator[None]:
    """Exit with a message and a status on errors of the server, the network or a setting."""
    try:
        yield
    except InvalidSetting as error:
        options.parser.error(str(error))
    except BrokenPipeError:  # the reader of the output has closed the pipe
        raise
    except (httpx.HTTPError, SessionEnded, KeeperFailed, OSError) as error:
        refuse(str(error), status)


def shown(url: str) -> str:
    """An address without credentials, as in saved sessions. Raises InvalidSetting if the address is invalid."""
    return str(parse_address(url, URL_SOURCE).url).rstrip("/")


def _keep_again(kept: KeptSession, url: str) -> None:
    if keeper.is_kept(kept):
        return
    try:
        keeper.start(kept, url)
    except (OSError, KeeperFailed) as error:
        say(str(error))
