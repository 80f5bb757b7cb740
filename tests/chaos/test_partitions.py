"""A host whose link to the database drops all packets, so that connections are lost but not closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import httpx
import pytest

from tests.chaos.hosts import Hosts, running_hosts
from tests.chaos.network import Cable
from tests.chaos.shell import locked, queue, sql
from tests.device_network import needs_network
from tests.fakes import wait_until
from tests.postgresql import problem

SOON: Final = 15.0
"""Seconds within which a server notices that it cannot reach the database; without probes it would take 75 more."""
BLOCKED: Final = """
    SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND client_addr = ?::inet
    AND clock_timestamp() - query_start > interval '0.2 s'
"""
"""Counts the statements of a server that have waited for a lock long enough for their TCP acknowledgement."""

pytestmark = [needs_network, pytest.mark.chaos, pytest.mark.skipif(bool(problem()), reason=problem())]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with running_hosts(tmp_path_factory.mktemp("hosts"), (1, 1)) as started:
        yield started


@contextmanager
def without_database(hosts: Hosts, number: int) -> Iterator[None]:
    """Cut the link between a host and the database."""
    assert hosts.network
    hosts.network.cut(number, Cable.DATABASE)
    try:
        yield
    finally:
        hosts.network.heal(number, Cable.DATABASE)


def states(hosts: Hosts) -> list[str]:
    return [host["state"] for host in queue(hosts.servers[1])["hosts"]]


def refuses(hosts: Hosts, number: int) -> bool:
    """Whether a server says that it cannot reach the database."""
    answer = httpx.post(f"{hosts.servers[number].url}/session", timeout=SOON)
    assert answer.status_code in {httpx.codes.CREATED, httpx.codes.SERVICE_UNAVAILABLE}
    return answer.status_code == httpx.codes.SERVICE_UNAVAILABLE


def test_a_host_without_the_database_serves_no_session_and_comes_back(hosts: Hosts) -> None:
    first, _ = hosts.servers.values()
    with without_database(hosts, 2):
        assert refuses(hosts, 2)
        wait_until(lambda: states(hosts) == ["live", "silent"], 20)
        sessions = [first.join() for _ in range(2)]
        assert [first.status(session)["host"] for session in sessions] == ["lab-1", None]
    assert first.status(sessions[1], wait=30)["host"] == "lab-2"


def test_a_server_notices_that_an_answer_of_the_database_was_lost(hosts: Hosts) -> None:
    assert hosts.network
    address = hosts.network.address(2, Cable.DATABASE)
    with ExitStack() as partition:
        with locked(hosts.database):
            wait_until(lambda: sql(hosts.database, BLOCKED, address) != [(0,)], 20, "the server waits for no lock")
            partition.enter_context(without_database(hosts, 2))
        assert refuses(hosts, 2)
    hosts.wait_until_live()
