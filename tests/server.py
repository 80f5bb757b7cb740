"""A real server process for tests, with the fake netlab or with the real one."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from filelock import FileLock

from neops_remote_lab.netlab.logs import FAILED
from neops_remote_lab.netlab.ownership import MARKER_DIR, PROGRAM, RECORD, claim
from neops_remote_lab.netlab.workspace import LAB_NAME_PREFIX
from tests.fakes import REAL_NETLAB_LOCK, FakeNetlab, install_fake_netlab, wait_until
from tests.fork_server import ForkServer, Process, Program, popen


def labs_in(work_dir: Path) -> list[str]:
    """Names in a work directory, except its marker and the logs of labs that did not start."""
    found = work_dir.iterdir() if work_dir.exists() else ()
    return sorted(path.name for path in found if path.name not in {MARKER_DIR, FAILED})


def abandoned_directory(work_dir: Path, name: str, host: str = "test-host") -> Path:
    """Create the directory of a lab whose owner process has ended."""
    record = {"program": PROGRAM, "lab_id": name, "host": host, "work_dir": claim(work_dir), "owner": "ended"}
    base = work_dir / name
    base.mkdir()
    (base / RECORD).write_text(json.dumps(record))
    return base


START_TIMEOUT = 30.0
TLS = ssl.create_default_context()
"""A shared TLS context: without it each client would load the certificates, which plain HTTP does not need."""


def by_flag(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings by the names of their flags: `-` instead of `_`."""
    return {name.replace("_", "-"): value for name, value in settings.items()}


def free_port() -> int:
    """A free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def docker_problem() -> str:
    """The reason to skip a test that needs Docker; empty if the Docker engine answers."""
    if shutil.which("docker") is None:
        return "Docker is not installed on this machine"
    asked = subprocess.run(["docker", "ps", "--quiet"], capture_output=True, check=False)
    return "the Docker engine of this machine does not answer" if asked.returncode else ""


class RealNetlab:
    """The real netlab of this machine, with the interface of `FakeNetlab` for what is left on the host."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def containers(self) -> list[str]:
        """The ids of the containers of all labs."""
        command = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", "label=containerlab"]
        if docker_problem():
            return []
        return sorted(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())

    def instances(self) -> dict[str, Any]:
        """netlab's list of lab instances."""
        path = Path.home() / ".netlab" / "status.yaml"
        return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}

    def system_objects(self) -> list[str]:
        """Names of the network namespaces of all labs and of the bridges of our labs."""
        namespaces = Path("/run/netns").glob("clab-*")
        bridges = Path("/sys/class/net").glob(f"{LAB_NAME_PREFIX}*")
        return sorted(path.name for path in (*namespaces, *bridges))

    def leftovers(self) -> list[str]:
        return self.containers() + sorted(map(str, self.instances())) + self.system_objects()


@dataclass
class LabServer:
    """One server: its files, its process, and calls to it."""

    root: Path
    netlab: FakeNetlab | RealNetlab
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    address: str = "127.0.0.1"
    program: Program = Program.SERVER
    launcher: Sequence[str] = ()
    """A command prefix that starts the server in another network namespace."""
    fork_server: ForkServer | None = None
    """A fork server in another network namespace, used instead of `launcher`."""
    process: Process | None = None

    @property
    def fake(self) -> FakeNetlab:
        """The fake netlab behind the server."""
        if not isinstance(self.netlab, FakeNetlab):
            raise TypeError("this server runs the real netlab")
        return self.netlab

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def database(self) -> Path:
        """The file of the database, unless a setting names another database."""
        return self.root / "remote-lab.sqlite3"

    @property
    def database_url(self) -> str:
        """The value of `--database`."""
        return self.settings.get("database", f"sqlite+aiosqlite:///{self.database}")

    @property
    def work_dir(self) -> Path:
        return self.root / "labs"

    @property
    def log(self) -> Path:
        return self.root / "server.log"

    def flags(self) -> list[str]:
        """The flags of the command line."""
        flags = {
            "host": self.address,
            "port": str(self.port),
            "database": self.database_url,
            "work-dir": str(self.work_dir),
            "lock-dir": str(self.root / "locks"),
            "lab-host": "test-host",
            "sql-poll": "0.1",
            **({"host-root": str(self.netlab.system)} if isinstance(self.netlab, FakeNetlab) else {}),
            "ready-cache": "0",
            **self.settings,
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def launch(self) -> None:
        """Start the process without waiting until it serves."""
        # If the test run is killed, the kernel ends the server too.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        environment = {**self.netlab.environment(), **self.environment}
        with self.log.open("ab") as log:
            self.process = popen(
                self.program,
                self.flags(),
                env=environment,
                stdout=log,
                stderr=log,
                launcher=[*self.launcher, *guard],
                fork_server=self.fork_server,
            )

    def start(self) -> None:
        """Start the process and wait until it serves."""
        self.launch()
        wait_until(self.serves, START_TIMEOUT, f"the server does not start: {self.log}")

    def serves(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the server ended: {self.log.read_text()[-4000:]}")
        with socket.socket() as probe:  # cheaper than an HTTP request, and this runs often
            if probe.connect_ex((self.address, self.port)):
                return False
        try:
            return httpx.get(f"{self.url}/healthz", verify=TLS).status_code == 204
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """Send SIGTERM and wait for the end. Returns the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        return self.process.wait(timeout) if self.process else 0

    def restart(self) -> None:
        """Kill the server with SIGKILL and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            try:
                self.stop()
            finally:  # a server that ignores SIGTERM must not disturb later tests
                self.kill()

    # Calls of clients

    def client(self, session_id: str | None = None, **options: Any) -> httpx.Client:
        headers = {"X-Session-ID": session_id} if session_id else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, verify=TLS, **options)

    def join(self, **body: str) -> str:
        """Join the queue. Returns the session id."""
        answer = httpx.post(f"{self.url}/session", json=body or None, verify=TLS)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["session_id"])

    def status(self, session_id: str, wait: float | None = None) -> dict[str, Any]:
        """The status of a session; with `wait`, a long poll of so many seconds."""
        answer = httpx.get(
            f"{self.url}/session/{session_id}", params={"wait": wait} if wait else {}, timeout=90, verify=TLS
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def acquire(self, session_id: str, topology: str, name: str = "topology.yml", **form: str) -> httpx.Response:
        with self.client(session_id) as client:
            return client.post("/lab", files={"topology": (name, topology)}, data=form)

    def is_clean(self) -> bool:
        """Whether no lab has left anything on the host or in the work directory."""
        return not self.netlab.leftovers() and not self.lab_directories()

    def lab_directories(self) -> list[str]:
        return labs_in(self.work_dir)


@contextmanager
def running_real_server(root: Path, **settings: str) -> Iterator[LabServer]:
    """A server that runs the real netlab of this machine, for one test at a time."""
    with FileLock(REAL_NETLAB_LOCK):
        server = LabServer(root, RealNetlab(), by_flag(settings))
        try:
            server.start()
            yield server
        finally:
            server.close()


@contextmanager
def running_server(root: Path, **settings: str) -> Iterator[LabServer]:
    """A server that runs the fake netlab. Settings are named as flags, with `_` for `-`."""
    server = LabServer(root, install_fake_netlab(root / "fake"), by_flag(settings))
    try:
        server.start()
        yield server
    finally:
        server.close()
