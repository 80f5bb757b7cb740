"""Opens the session of a pytest run and closes it again."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest

from neops_remote_lab.client import RemoteLabClient
from neops_remote_lab.testing import xdist
from neops_remote_lab.testing.interrupt import LostSession, leave_run
from neops_remote_lab.testing.settings import LabHostSettings


@contextmanager
def open_session(
    session: pytest.Session, settings: LabHostSettings, topologies: Sequence[Path]
) -> Iterator[RemoteLabClient]:
    """Join the queue, wait until the session is active, and end the session in the end.

    Args:
        session: the pytest run.
        settings: which lab host.
        topologies: the topology files that the run needs.
    """
    lost = LostSession(session)
    with lost.watched():
        client = _join(session, settings, topologies, lost)
        xdist.announce(session.config, client)
        try:
            yield client
        finally:
            leave(session.config, client)


def leave(config: pytest.Config, client: RemoteLabClient) -> None:
    """End the session, or leave it to the other workers. May be called again."""
    if xdist.is_worker(config):
        client.detach()
    else:
        client.close()


def _join(
    session: pytest.Session, settings: LabHostSettings, topologies: Sequence[Path], lost: LostSession
) -> RemoteLabClient:
    config = session.config
    _say(config, f"joining the queue of {settings.url}")
    try:
        return RemoteLabClient(
            settings.url,
            settings.request_timeout,
            settings.session_timeout,
            settings.acquisition_timeout,
            purpose=settings.job or f"pytest in {config.rootpath.name}",
            session_key=xdist.session_key(config),
            # what one worker finds out would end the session of all
            topologies=() if xdist.is_worker(config) else topologies,
            on_progress=_progress(config),
            on_lost=lost.stop_run,
        )
    except (httpx.HTTPError, TimeoutError) as error:
        reason = str(error)
    except RuntimeError as error:
        leave_run(session, str(error))
    pytest.fail(f"remote lab: {reason}", pytrace=False)


def _progress(config: pytest.Config) -> Callable[[int, str | None], None]:
    def show(position: int, waiting_for: str | None) -> None:
        if position == 0:
            _say(config, "it is our turn")
        else:
            _say(config, f"position {position} in the queue" + (f", {waiting_for}" if waiting_for else ""))

    return show


def _say(config: pytest.Config, text: str) -> None:
    """Show a line at once, also while pytest captures what tests print."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    with capture.global_and_fixture_disabled() if capture else nullcontext():  # `-p no:capture` takes it away
        if reporter is None or xdist.is_worker(config):  # a worker's reporter has no terminal, its standard error has
            sys.stderr.write(f"remote lab: {text}\n")
            sys.stderr.flush()
        else:
            reporter.ensure_newline()
            reporter.write_line(f"remote lab: {text}")
            reporter.flush()
