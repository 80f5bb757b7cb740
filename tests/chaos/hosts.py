"""Several servers of one queue, each with its own host, and a supervisor that starts them again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from tests.chaos.history import History, install_audit, read_history
from tests.chaos.journal import FactKind, Journal
from tests.chaos.network import OWN, Cable, Network
from tests.chaos.shell import processes_of, sql
from tests.device_network import NO_NETWORK
from tests.fakes import install_fake_netlab, wait_until
from tests.fork_server import ForkServer, Program
from tests.postgresql import Cluster, running_cluster
from tests.server import START_TIMEOUT, LabServer, by_flag

LEASE: Final = 1.5
GONE_AFTER: Final = 3.5
"""Seconds without a sign of life after which a host is silent, and gone."""
SETTINGS: Final = {
    "host_beat": "0.2",
    "host_lease": str(LEASE),
    "host_gone_after": str(GONE_AFTER),
    "busy_timeout": "1",
    "proxy_connect_timeout": "1",
    "quarantine_retry": "0.5",
    "kill_grace": "0.5",
    "down_timeout": "30",
    "node_memory": str(1 << 20),  # so that no lab waits for the memory of this machine
    "waiting_timeout": "900",  # so that no session ends without a fault
    "active_timeout": "900",
    "log_level": "INFO",
}
SLOW: Final = {"start_seconds": 0.05, "node_seconds": 0.03, "config_seconds": 0.05, "down_seconds": 0.1}
"""Durations of the fake netlab of each host."""
RECOVERY_TIMEOUT: Final = 90.0
"""Seconds after the last fault within which all hosts must be live and all sessions and labs removed."""


@dataclass
class Hosts:
    """The servers, by the number of their host from 1 on, with their database and network."""

    cluster: Cluster
    database: str
    """The URL of the database for this process."""
    network: Network | None
    journal: Journal = field(default_factory=Journal)
    servers: dict[int, LabServer] = field(default_factory=dict)
    down: set[int] = field(default_factory=set)
    """The hosts whose servers were killed and must not be started yet."""
    cut: set[int] = field(default_factory=set)
    """The hosts that cannot reach the database."""
    starting_in_advance: frozenset[int] = frozenset()
    """The hosts that start labs in advance."""
    logged: dict[int, int] = field(default_factory=dict)
    """The size of the log of each server when it was started, in bytes."""

    @property
    def urls(self) -> list[str]:
        """The addresses of all servers."""
        return [server.url for server in self.servers.values()]

    def name(self, number: int) -> str:
        """The name of a host in the database."""
        return f"lab-{number}"

    def kill(self, number: int) -> None:
        """Send SIGKILL. `supervise` starts the server again once the host is removed from `down`."""
        self.down.add(number)
        self.journal.note(FactKind.KILLED, self.name(number))
        self.servers[number].kill()

    def supervise(self) -> None:
        """Start servers that have ended, as systemd would, except hosts that are down or without the database."""
        if self.cluster.process is None or self.cluster.process.poll() is not None:
            return
        for number, server in self.servers.items():
            if number in self.down | self.cut or (server.process and server.process.poll() is None):
                continue
            if server.process and (status := server.process.poll()) != -signal.SIGKILL:
                self._note_end(number, status)
            self.launch(number)

    def launch(self, number: int) -> None:
        """Start a server, and do not wait for it."""
        server = self.servers[number]
        self.logged[number] = server.log.stat().st_size if server.log.exists() else 0
        server.launch()

    def _note_end(self, number: int, status: int | None) -> None:
        """A server may end by itself if it cannot reach the database when it starts, and not once it serves."""
        said = self.servers[number].log.read_bytes()[self.logged[number] :]
        if b"Application startup complete" in said:
            self.journal.note(FactKind.UNEXPECTED, self.name(number), f"the server ended with status {status}")
        sys.stdout.write(f"{self.name(number)} ended with status {status} and is started again\n")

    def wait_until_live(self) -> None:
        """Wait until all servers serve, and all hosts are live."""

        def live() -> bool:
            self.supervise()
            states = sql(self.database, "SELECT count(*) FROM lab_host WHERE state = 'live'")
            return states == [(len(self.servers),)] and all(_is_ready(server) for server in self.servers.values())

        wait_until(live, RECOVERY_TIMEOUT, f"not all servers serve: {self.servers[1].root.parent}")

    def wait_until_settled(self) -> None:
        """Wait until there are no live sessions, labs and leftovers, and all servers are ready."""
        self.wait_until_live()
        for query in (
            "SELECT session_id, state, host FROM session WHERE state <> 'ended'",
            "SELECT lab_id, state, host, session_id FROM lab WHERE state <> 'ended'",
            "SELECT lab_id FROM lab_reference WHERE released_at IS NULL",
        ):
            self._wait_until_empty(query)
        for server in self.servers.values():
            wait_until(server.is_clean, RECOVERY_TIMEOUT, f"something is left on {server.root}")

    def _wait_until_empty(self, query: str) -> None:
        rows: list[object] = []

        def empty() -> bool:
            self._end_unacknowledged()
            rows[:] = sql(self.database, query)
            return not rows

        try:
            wait_until(empty, RECOVERY_TIMEOUT)
        except AssertionError:
            raise AssertionError(f"left: {rows} in {self.servers[1].root.parent}") from None

    def _end_unacknowledged(self) -> None:
        """End sessions whose join was never acknowledged, instead of waiting for their timeouts.

        A server that was suspended or cut off may process a join that the client has meanwhile sent to another server.
        """
        known = self.journal.sessions(FactKind.JOINED)
        for (session_id,) in sql(self.database, "SELECT session_id FROM session WHERE state <> 'ended'"):
            if session_id not in known:
                end_session(self, session_id)

    def history(self) -> History:
        """The history up to now."""
        fakes = {self.name(number): server.fake for number, server in self.servers.items()}
        return read_history(self.database, self.journal.facts(), fakes, map(self.name, self.starting_in_advance))

    def stop(self) -> None:
        """Stop all servers with SIGTERM, and require that they leave no process and no lab."""
        for server in self.servers.values():
            server.signal(signal.SIGTERM)
        for server in self.servers.values():
            assert server.wait() == 0, server.log
            assert server.is_clean(), server.root
            assert processes_of(server) == [], server.root


def end_session(hosts: Hosts, session_id: str) -> None:
    """End a session as an operator does."""
    hosts.journal.note(FactKind.OPERATOR_ENDS, session_id)
    sql(hosts.database, "UPDATE session SET state = 'ended' WHERE session_id = ? AND state <> 'ended'", session_id)


def _is_ready(server: LabServer) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@contextmanager
def running_hosts(
    root: Path,
    slots: Sequence[int] = (1, 2, 1),
    program: Program = Program.SERVER,
    *,
    starting_in_advance: Collection[int] = (),
) -> Iterator[Hosts]:
    """One server per entry of `slots`, in a network that can be partitioned if root runs the tests.

    Args:
        root: a directory for the files of all hosts.
        slots: the number of slots of each host.
        program: the program of all servers.
        starting_in_advance: the numbers of the hosts that start labs in advance.
    """
    with ExitStack() as ends:
        network = None if NO_NETWORK else Network()
        if network:
            ends.enter_context(network.built(len(slots)))
        address = network.address(OWN, Cable.DATABASE) if network else ""
        cluster = ends.enter_context(running_cluster(listen_addresses=address))
        name = cluster.create_database(cluster.migrated)
        hosts = Hosts(cluster, cluster.url(name), network, starting_in_advance=frozenset(starting_in_advance))
        install_audit(hosts.database)
        for number, count in enumerate(slots, 1):
            flags = SETTINGS | {"slots": str(count), "database": cluster.url(name, address=address)}
            server = _server(root / f"host-{number}", number, network, program, ends)
            server.settings = by_flag(flags)
            server.settings |= {"lab-host": hosts.name(number), "advertise": server.url}
            server.environment |= {"NEOPS_REMOTE_LAB_PRESTART": str(number in starting_in_advance)}
            hosts.servers[number] = server
            ends.callback(server.close)
            hosts.launch(number)
        wait_until(lambda: all(server.serves() for server in hosts.servers.values()), START_TIMEOUT)
        hosts.wait_until_live()
        yield hosts


def _server(root: Path, number: int, network: Network | None, program: Program, ends: ExitStack) -> LabServer:
    root.mkdir()
    fake = install_fake_netlab(root / "fake")
    fake.control(**SLOW)
    if network is None:
        return LabServer(root, fake, program=program)
    inside = network.inside(number)
    server = LabServer(root, fake, address=network.address(number, Cable.CLIENTS), program=program, launcher=inside)
    if ForkServer.of_this_run:
        server.fork_server = ForkServer(program, inside)
        ends.callback(server.fork_server.close)
    return server
