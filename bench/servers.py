"""The two servers, and what the rows of the table share."""

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
from tests.server import START_TIMEOUT, LabServer, RealNetlab, free_port

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
"""What tests/server.py calls the lab host."""
NEVER: Final = "86400"
"""A timeout, in seconds, that no measurement sees."""

REAL_HOST_TIMEOUT: Final = 120.0
"""Seconds to wait until no other process uses the real netlab."""


class Server(Protocol):
    """What both servers can do."""

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
        """SIGTERM; SIGKILL where that does not help in time."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def guarded(command: Sequence[str]) -> list[str]:
    """A command that ends when the bench does, where the system can arrange that."""
    guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return [*guard, *command]


@dataclass
class Bench:
    """One run of the bench: how long it may take, where its files are, and whom to compare with."""

    full: bool
    root: Path
    peer: Peer | None
    no_peer: str
    """Why there is no peer."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def choose(self, short: T, full: T) -> T:
        return full if self.full else short

    def directory(self, name: str) -> Path:
        """A new, empty directory."""
        made = self.root / f"{next(self._numbers)}-{name}"
        made.mkdir(parents=True)
        return made

    @contextmanager
    def ours(self, lab_host: FakeNetlab | RealNetlab | None = None, /, **settings: str) -> Iterator[LabServer]:
        """Our server with its defaults, on a separate lab host unless one is given."""
        server = self.our_server(lab_host, **settings)
        try:
            start(server)
            yield server
        finally:
            server.close()

    def our_server(self, lab_host: FakeNetlab | RealNetlab | None = None, /, **settings: str) -> LabServer:
        """The same, not started."""
        root = self.directory("ours")
        flags = {"sql-poll": "0.5", **{name.replace("_", "-"): value for name, value in settings.items()}}
        return LabServer(root, lab_host or host.install(root / "host"), flags, _temporary(root))

    @contextmanager
    def theirs(self, lab_host: FakeNetlab | RealNetlab | None = None) -> Iterator[PeerServer | None]:
        """The peer's server with its own defaults; None where there is no peer."""
        if (server := self.peer_server(lab_host)) is None:
            yield None
            return
        try:
            start(server)
            yield server
        finally:
            server.close()

    def peer_server(self, lab_host: FakeNetlab | RealNetlab | None = None) -> PeerServer | None:
        """The same, not started."""
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
        """Start these servers at the same time, and end them."""
        with ExitStack() as stack:
            for server in servers:
                stack.callback(server.close)
                server.launch()
            for server in servers:
                wait_until(server.serves, START_TIMEOUT, f"a server does not start: {server.root}")
            yield


def start(server: Server) -> None:
    """Start a server; raises `BenchError` where it does not come up."""
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
        host.wait_clean(lab_host, REAL_HOST_TIMEOUT)  # a lab may run whose owner does not know of the lock
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
    """One call on a new connection; the JSON of its answer. Raises `BenchError` on another status."""
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
    """A new session's id."""
    return str(call(server, "POST", "/session", 201)["session_id"])


def end(server: Server, session: str) -> None:
    call(server, "DELETE", f"/session/{session}", 204, session)


def sessions(server: Server) -> int:
    """How many sessions there are, the active one included."""
    return int(call(server, "GET", "/debug/health", 200)["sessions"])


def labs(server: LabServer) -> Counter[str]:
    """The number of our server's labs by their state, those that are being torn down included."""
    found = re.findall(r'lab_state\{state="(\w+)"\} (\d+)', httpx.get(f"{server.url}/metrics").text)
    return Counter({state: int(number) for state, number in found if state != NO_LAB})


def has_no_lab(server: LabServer) -> bool:
    """Whether our server has no lab, not even one that is being torn down."""
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
    """Write sessions into a database, as after a restart: one active on each host, and so many waiting ones.

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
    """The server's process. `setpriv` replaces itself by it, so the pid is right."""
    require(server.process, "the server was not started")
    assert server.process is not None
    return psutil.Process(server.process.pid)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for all files of servers; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
