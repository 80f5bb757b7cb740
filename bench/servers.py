"""Servers of this version and of the peer, calls to them, and the context of a run."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx
import psutil
from filelock import FileLock
from sqlalchemy import create_engine, insert
from tests.fakes import REAL_NETLAB_LOCK, FakeNetlab, wait_until
from tests.fork_server import Process
from tests.server import START_TIMEOUT, LabServer, RealNetlab, by_flag, free_port

from bench import host
from bench.measure import BenchError, require
from bench.peer import Peer
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.metrics import NO_LAB
from neops_remote_lab.store.rows import DEFAULT_QUEUE, FIRST_SLOT
from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.migrate import migrate, synchronous
from neops_remote_lab.store.sql.tables import SESSION

T = TypeVar("T")

LAB_HOST: Final = "test-host"
"""The name of the lab host in tests/server.py."""
NEVER: Final = "86400"
"""A timeout, in seconds, that is longer than any measurement."""

REAL_HOST_TIMEOUT: Final = 120.0
"""Seconds to wait until no other process uses the real netlab."""


class Server(Protocol):
    """The common interface of both servers."""

    root: Path
    port: int

    @property
    def process(self) -> Process | None: ...

    @property
    def url(self) -> str: ...

    def launch(self) -> None: ...

    def start(self) -> None: ...

    def serves(self) -> bool: ...

    def close(self) -> None: ...


@dataclass
class PeerServer:
    """A server process of version 1.4.0."""

    root: Path
    fake: FakeNetlab | RealNetlab
    peer: Peer
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Start the process, and do not wait for it."""
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                guarded(self.peer.command(self.port)),
                cwd=self.root,
                env=self.peer.without_ours({**self.fake.environment(), **self.environment}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        self.launch()
        wait_until(self.serves, START_TIMEOUT, f"version 1.4.0 does not start: {self._log()}")

    def serves(self) -> bool:
        require(self.process and self.process.poll() is None, f"version 1.4.0 ended: {self._log()}")
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 204
        except httpx.TransportError:
            return False

    def _log(self) -> str:
        log = self.root / "server.log"
        return re.sub(r"\x1b\[\d+m", "", log.read_text(errors="replace")[-3000:]) if log.exists() else ""

    def close(self) -> None:
        """Send SIGTERM, and SIGKILL after a minute."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def guarded(command: Sequence[str]) -> list[str]:
    """The command with a prefix that ends it with this process, if `setpriv` is installed."""
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return [*guard, *command]


@dataclass
class Bench:
    """The context of a run: short or full, its files, and the peer."""

    full: bool
    root: Path
    peer: Peer | None
    no_peer: str
    """Why there is no peer."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def choose(self, short: T, full: T) -> T:
        """A value for a short or for a full run."""
        return full if self.full else short

    def directory(self, name: str) -> Path:
        """A new, empty directory."""
        made = self.root / f"{next(self._numbers)}-{name}"
        made.mkdir(parents=True)
        return made

    @contextmanager
    def ours(self, lab_host: FakeNetlab | RealNetlab | None = None, /, **settings: str) -> Iterator[LabServer]:
        """A server of this version with default settings, on a new fake lab host unless one is given."""
        server = self.our_server(lab_host, **settings)
        try:
            start(server)
            yield server
        finally:
            server.close()

    def our_server(self, lab_host: FakeNetlab | RealNetlab | None = None, /, **settings: str) -> LabServer:
        """A server as `ours` makes it, not started."""
        root = self.directory("ours")
        flags = by_flag({"sql_poll": "0.5", **settings})
        return LabServer(root, lab_host or host.install(root / "host"), flags, _temporary(root))

    @contextmanager
    def theirs(self, lab_host: FakeNetlab | RealNetlab | None = None) -> Iterator[PeerServer | None]:
        """A server of the peer with its default settings; None without a peer."""
        if (server := self.peer_server(lab_host)) is None:
            yield None
            return
        try:
            start(server)
            yield server
        finally:
            server.close()

    def peer_server(self, lab_host: FakeNetlab | RealNetlab | None = None) -> PeerServer | None:
        """A server as `theirs` makes it, not started."""
        if self.peer is None:
            return None
        root = self.directory("peer")
        return PeerServer(root, lab_host or host.install(root / "host"), self.peer, _temporary(root))

    @contextmanager
    def both(self) -> Iterator[tuple[LabServer, PeerServer | None]]:
        """One server of each version, on separate lab hosts."""
        with self.ours() as ours, self.theirs() as theirs:
            yield ours, theirs

    @contextmanager
    def several(self, servers: Sequence[Server]) -> Iterator[None]:
        """Start these servers at the same time, and stop them at the end."""
        with ExitStack() as stack:
            for server in servers:
                stack.callback(server.close)
                server.launch()
            for server in servers:
                wait_until(server.serves, START_TIMEOUT, f"a server does not start: {server.root}")
            yield


def start(server: Server) -> None:
    """Start a server. Raises `BenchError` if it does not serve in time."""
    try:
        server.start()
    except AssertionError as error:
        raise BenchError(str(error)) from None


def _temporary(root: Path) -> dict[str, str]:
    """A separate temporary directory for the files and locks of a server."""
    directory = root / "tmp"
    directory.mkdir(exist_ok=True)
    return {"TMPDIR": str(directory)}


@contextmanager
def real_host() -> Iterator[RealNetlab]:
    """This machine as the lab host, which only one program at a time may use."""
    with FileLock(REAL_NETLAB_LOCK, timeout=REAL_HOST_TIMEOUT):
        lab_host = RealNetlab()
        host.wait_clean(lab_host, REAL_HOST_TIMEOUT)  # a lab of a program that does not use the lock may be running
        yield lab_host


def call(
    server: Server,
    method: str,
    path: str,
    expect: int,
    session: str = "",
    *,
    body: bytes = b"",
    content_type: str = "application/json",
    timeout: float = 120,
) -> Any:
    """Send one call on a new connection. Returns the JSON of the response. Raises `BenchError` on another status."""
    headers = {"X-Session-ID": session} if session else {}
    headers |= {"Content-Type": content_type} if body else {}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)) as connection:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != expect:
        raise BenchError(f"{method} {path}: {answer.status} instead of {expect}: {content[:500]!r}")
    return json.loads(content) if content else None


def joined(server: Server) -> str:
    """Join the queue. Returns the session id."""
    return str(call(server, "POST", "/session", 201)["session_id"])


def end(server: Server, session: str) -> None:
    call(server, "DELETE", f"/session/{session}", 204, session)


def sessions(server: Server) -> int:
    """The number of live sessions, including active ones."""
    return int(call(server, "GET", "/debug/health", 200)["sessions"])


def labs(server: LabServer) -> Counter[str]:
    """The number of labs of a server of this version, by state, including labs that are being torn down."""
    found = re.findall(r'lab_state\{state="(\w+)"\} (\d+)', httpx.get(f"{server.url}/metrics").text)
    return Counter({state: int(number) for state, number in found if state != NO_LAB})


def has_no_lab(server: LabServer) -> bool:
    """Whether a server of this version has no lab, not even one that is being torn down."""
    return not labs(server).total()


def form(topology: str, name: str = "topology.yml") -> tuple[bytes, str]:
    """The body of `POST /lab` and its content type."""
    boundary = "a-boundary-that-no-topology-holds"
    parts = [
        f'Content-Disposition: form-data; name="topology"; filename="{name}"\r\n'
        f"Content-Type: application/yaml\r\n\r\n{topology}",
        'Content-Disposition: form-data; name="reuse"\r\n\r\ntrue',
    ]
    text = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    return text.encode(), f"multipart/form-data; boundary={boundary}"


def fill(database: str, waiting: int, hosts: Sequence[str] = (LAB_HOST,)) -> list[str]:
    """Write sessions into a database, as after a restart: one active session per host, and `waiting` others.

    Returns their ids in FIFO order, the active ones first.
    """
    migrate(database)
    ids = [os.urandom(16).hex() for _ in range(len(hosts) + waiting)]
    now = datetime.now(UTC)
    common = {"queue": DEFAULT_QUEUE, "created_at": now, "last_seen_at": now}
    rows: list[dict[str, Any]] = [{"session_id": each, "rank": rank, **common} for rank, each in enumerate(ids)]
    active = [
        row | {"state": SessionState.ACTIVE, "host": host, "slot": FIRST_SLOT, "activated_at": now}
        for row, host in zip(rows, hosts, strict=False)
    ]
    engine = create_engine(synchronous(urls.parse(database)))
    with engine.begin() as connection:
        connection.execute(insert(SESSION), active)
        if waiting:
            connection.execute(insert(SESSION), [row | {"state": SessionState.WAITING} for row in rows[len(hosts) :]])
    engine.dispose()
    return ids


def process_of(server: Server) -> psutil.Process:
    """The process of a server. `setpriv` executes it in its own process, so the pid is the same."""
    require(server.process, "the server was not started")
    assert server.process is not None
    return psutil.Process(server.process.pid)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for all files of servers; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
