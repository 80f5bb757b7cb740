"""The ledger finds violations by servers without fencing, without the lock of the queue, or without owners of labs."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.clients import working_clients
from tests.chaos.faults import TO_THE_FRONT
from tests.chaos.hosts import Hosts, running_hosts
from tests.chaos.journal import FactKind
from tests.chaos.ledger import violations
from tests.chaos.replay import ViolationKind
from tests.chaos.shell import ask, sql
from tests.fakes import topology_text, wait_until
from tests.fork_server import Program
from tests.postgresql import problem

ATTEMPTS: Final = 4
VISITS: Final = 100
"""Number of sessions that join and leave in the first attempt."""

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(bool(problem()), reason=problem())]


def found(hosts: Hosts) -> set[ViolationKind]:
    """The kinds of violations so far."""
    return {violation.kind for violation in violations(hosts.history())}


def test_a_server_without_a_fence_is_found(tmp_path: Path) -> None:
    with running_hosts(tmp_path, (1, 1), Program.SERVER_WITHOUT_FENCE) as hosts:
        for _ in range(ATTEMPTS):
            _release_when_silent(hosts)
            if ViolationKind.FENCED_WRITE in found(hosts):
                break
        assert ViolationKind.FENCED_WRITE in found(hosts)


def _release_when_silent(hosts: Hosts) -> None:
    """Send a call to a suspended server, which continues once its host was declared silent."""
    server, silent = hosts.servers[1], "SELECT count(*) FROM lab_host WHERE state = 'silent'"
    session = server.join()
    assert server.status(session, wait=20)["host"] == hosts.name(1)
    assert server.acquire(session, topology_text(1)).status_code == 200
    with socket.create_connection((server.address, server.port)) as line:
        server.signal(signal.SIGSTOP)
        try:
            line.sendall(f"POST /lab/release HTTP/1.1\r\nHost: lab\r\nX-Session-ID: {session}\r\n\r\n".encode())
            wait_until(lambda: sql(hosts.database, silent) == [(1,)], 30, "the host is not declared silent")
        finally:
            server.signal(signal.SIGCONT)
        assert line.recv(1)
    hosts.journal.note(FactKind.LEAVING, session)
    hosts.wait_until_live()
    ask(server, session, "DELETE", f"/session/{session}")
    hosts.wait_until_settled()


def test_servers_without_the_lock_of_the_queue_are_found(tmp_path: Path) -> None:
    with running_hosts(tmp_path, (1, 1, 1), Program.SERVER_WITHOUT_QUEUE_LOCK) as hosts:
        for attempt in range(1, ATTEMPTS + 1):
            _join_and_leave(hosts, attempt)
            if ViolationKind.INVERSION in found(hosts):
                break
        assert ViolationKind.INVERSION in found(hosts)


def _join_and_leave(hosts: Hosts, attempt: int) -> None:
    """Let many clients join and leave at once, at all servers."""
    stop, enough = threading.Event(), attempt * VISITS
    with working_clients(hosts.urls, hosts.journal, attempt, 20, stop, lab_share=0):
        wait_until(lambda: len(hosts.journal.facts(FactKind.LEFT)) >= enough or stop.is_set(), 60)


def test_a_server_that_gives_a_lab_in_advance_to_another_session_is_found(tmp_path: Path) -> None:
    with running_hosts(tmp_path, (1,), Program.SERVER_WITHOUT_OWNERS, starting_in_advance={1}) as hosts:
        [server] = hosts.servers.values()
        holder, waiting, other = (server.join() for _ in range(3))
        assert server.status(holder, wait=20)["position"] == 0
        assert server.acquire(holder, topology_text(1)).status_code == 200
        ask(server, waiting, "POST", "/topology/check", files={"topology": ("t.yml", topology_text(2))})
        running = "SELECT session_id FROM lab WHERE state = 'running' ORDER BY number"
        wait_until(lambda: sql(hosts.database, running) == [(holder,), (waiting,)], 30, "no lab starts in advance")
        assert ViolationKind.TWO_OWNERS not in found(hosts)
        sql(hosts.database, TO_THE_FRONT, other)
        ask(server, holder, "DELETE", f"/session/{holder}")
        assert server.status(other, wait=20)["position"] == 0
        assert server.acquire(other, topology_text(2)).status_code == 200
        assert ViolationKind.TWO_OWNERS in found(hosts)
