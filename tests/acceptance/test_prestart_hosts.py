"""Labs in advance, and the slots of sessions, on hosts that are silent or gone for a while."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.acceptance.test_hosts import call, end, hosts, serving
from tests.chaos.shell import sql
from tests.fakes import topology_text, wait_until
from tests.postgresql import Cluster
from tests.server import LabServer

NEXT = topology_text(2)


@pytest.fixture
def shared(cluster: Cluster) -> Iterator[str]:
    """A PostgreSQL database that several servers use."""
    with cluster.new_database() as url:
        yield url


@pytest.fixture
def servers(request: pytest.FixtureRequest, shared: str, tmp_path: Path) -> Iterator[tuple[LabServer, LabServer]]:
    """A server with two slots, which starts labs in advance unless the parameter is false, and one with one slot."""
    in_advance = {"NEOPS_REMOTE_LAB_PRESTART": str(getattr(request, "param", True))}
    with ExitStack() as stack:
        with patch.dict(os.environ, in_advance):
            first = stack.enter_context(serving(tmp_path / "lab-1", shared, "lab-1", slots="2", node_memory="1048576"))
        second = stack.enter_context(serving(tmp_path / "lab-2", shared, "lab-2"))
        wait_until(lambda: len(hosts(first)) == len(hosts(second)) == 2, 20, "the servers do not know each other")
        yield first, second


@contextmanager
def suspended(server: LabServer, watch: LabServer, state: str) -> Iterator[None]:
    """A context in which a server is suspended, from the moment when another server shows this state of its host."""
    server.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: hosts(watch)["lab-1"] == state, 20, f"the host is not {state}")
        yield
    finally:
        server.signal(signal.SIGCONT)
    wait_until(lambda: hosts(watch)["lab-1"] == "live", 20, "the host does not come back")


def with_lab(server: LabServer) -> str:
    """A session with a lab."""
    session = server.join()
    assert server.acquire(session, topology_text(1)).status_code == 200
    return session


def starts_in_advance(server: LabServer, database: str) -> str:
    """A waiting session whose lab is running."""
    waiter = server.join()
    files = {"topology": ("t.yml", NEXT)}
    assert call(server, waiter, "POST", "/topology/check", files=files).status_code == 200
    running = "SELECT count(*) FROM lab WHERE session_id = ? AND state = 'running'"
    wait_until(lambda: sql(database, running, waiter) == [(1,)], 30, "no lab starts in advance")
    return waiter


def test_a_lab_starts_in_advance_while_the_slots_of_other_hosts_are_used_too(
    servers: tuple[LabServer, LabServer], shared: str
) -> None:
    first, second = servers
    holders = [with_lab(first) for _ in range(3)]
    waiter = starts_in_advance(first, shared)
    follower = first.join()
    files = {"topology": ("t.yml", NEXT)}
    assert call(first, follower, "POST", "/topology/check", files=files).status_code == 200
    end(first, next(session for session in holders if first.status(session)["host"] == "lab-2"))
    assert first.status(waiter, wait=20)["host"] == "lab-2"
    assert first.acquire(waiter, NEXT).status_code == 200
    assert len(second.fake.containers()) == 2
    wait_until(lambda: len(first.fake.invocations("up")) == 4, 20, "the lab of the follower does not start in advance")
    assert "Traceback" not in first.log.read_text()


def test_a_lab_in_advance_that_was_declared_lost_is_replaced(servers: tuple[LabServer, LabServer], shared: str) -> None:
    first, second = servers
    for _ in range(3):
        with_lab(first)
    waiter = starts_in_advance(first, shared)
    with suspended(first, second, "gone"):
        assert second.status(waiter)["position"] == 1
    assert second.status(waiter, wait=20)["host"] == "lab-1"
    wait_until(lambda: first.acquire(waiter, NEXT).status_code == 200, 20, "the session gets no lab")
    live = "SELECT count(*) FROM lab WHERE session_id = ? AND state = 'running'"
    assert sql(shared, live, waiter) == [(1,)]
    assert len(first.fake.containers()) == 2


def test_a_host_that_is_drained_tears_its_lab_in_advance_down(
    servers: tuple[LabServer, LabServer], shared: str
) -> None:
    first, _ = servers
    for _ in range(3):
        with_lab(first)
    waiter = starts_in_advance(first, shared)
    sql(shared, "UPDATE lab_host SET is_draining = true WHERE name = 'lab-1'")
    wait_until(lambda: len(first.fake.containers()) == 2, 20, "its lab in advance is not torn down")
    assert first.status(waiter)["position"] == 1


@pytest.mark.parametrize("servers", [False], indirect=True)
def test_a_session_gets_the_slot_of_one_that_became_active_elsewhere(
    servers: tuple[LabServer, LabServer], shared: str
) -> None:
    first, second = servers
    holders = [with_lab(first) for _ in range(3)]
    on_second = next(session for session in holders if first.status(session)["host"] == "lab-2")
    [moving] = [session for session in holders if first.status(session)["slot"] == 2]
    assert call(first, moving, "POST", "/lab/release").status_code == 204
    live = "SELECT count(*) FROM lab WHERE session_id = ? AND state <> 'ended'"
    wait_until(lambda: sql(shared, live, moving) == [(0,)], 20, "the lab is not torn down")
    waiter = first.join()
    with suspended(first, second, "silent"):
        wait_until(lambda: second.status(moving)["position"] == 1, 20, "the session without a lab does not wait again")
        end(second, on_second)
        assert second.status(moving, wait=20)["host"] == "lab-2"
    status = second.status(waiter, wait=20)
    assert (status["host"], status["slot"]) == ("lab-1", 2)
    wait_until(lambda: first.acquire(waiter, NEXT).status_code == 200, 5, "the session gets no lab")
