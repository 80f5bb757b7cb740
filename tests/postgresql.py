"""A PostgreSQL server for tests, from the programs that a package of the system installs, and its databases."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from sqlalchemy.engine import make_url

from neops_remote_lab.store.sql.migrate import migrate
from tests.fakes import wait_until
from tests.server import free_port

if TYPE_CHECKING:
    import psycopg

PACKAGED: Final = Path("/usr/lib/postgresql")
"""Where Debian keeps the programs of each version of PostgreSQL."""
UNPRIVILEGED: Final = "nobody"
"""The system user of PostgreSQL if root runs the tests, because it refuses to run as root."""
SUPERUSER: Final = "postgres"
OWNER: Final = "remote_lab"
"""The database user that owns the databases, without further rights."""
AUTHENTICATED: Final = "authenticated"
"""A member of OWNER that needs a password, unlike the other users."""
SETTINGS: Final[dict[str, str]] = {
    "listen_addresses": "",  # only a socket in a private directory
    "fsync": "off",  # commits survive a crash of PostgreSQL, and no test stops the machine
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
}
AUTHENTICATION: Final = f"""
local all {AUTHENTICATED} scram-sha-256
local all all trust
"""


@functools.cache
def programs() -> Path | None:
    """The directory of PostgreSQL's programs; None where they are not installed."""
    versions = [path for path in PACKAGED.glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def problem() -> str:
    """The reason to skip tests with PostgreSQL; empty if it is installed."""
    if programs() is None:
        return "PostgreSQL is not installed on this machine"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed: install neops-remote-lab[postgresql]"
    return ""


@dataclass
class Cluster:
    """One PostgreSQL server: its files and its process."""

    directory: Path
    password: str = field(default_factory=lambda: secrets.token_urlsafe() + "/@:%")
    """The password of AUTHENTICATED."""
    settings: dict[str, str] = field(default_factory=lambda: SETTINGS)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def url(self, name: str, user: str = OWNER, address: object = None) -> str:
        """The URL of a database, as `--database` takes it: at the socket of the server, or at an address of it."""
        port = f":{self.settings['port']}" if "port" in self.settings else ""
        return f"postgresql+psycopg://{user}@{port}/{name}?host={address or self.directory}"

    def initialize(self) -> None:
        """Create the files of the server."""
        self._run(
            "initdb", "--pgdata", self.data, "--username", SUPERUSER, "--encoding=UTF8", "--no-sync", "--auth=trust"
        )
        remote = f"host all {OWNER} samenet trust\n" if self.settings["listen_addresses"] else ""
        self.data.joinpath("pg_hba.conf").write_text(AUTHENTICATION + remote, encoding="utf-8")

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        settings = {**self.settings, "unix_socket_directories": self.directory}
        words = [f"--{name}={value}" for name, value in settings.items()]
        command = [*_guard("QUIT"), str(_program("postgres")), "-D", str(self.data), *words]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_identity())
        wait_until(self.serves, 30, f"PostgreSQL does not start: {self.log}")

    def serves(self) -> bool:
        """Whether the server accepts connections."""
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"PostgreSQL ended: {self.log.read_text()[-4000:]}")
        ask = [str(_program("pg_isready")), "--quiet", "--dbname", self.url("postgres").replace("+psycopg", "")]
        return subprocess.run(ask, check=False).returncode == 0

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: with SIGINT connections are ended first, with SIGQUIT it stops as in a crash."""
        if self.process:
            self.process.send_signal(how)
            self.process.wait(30)

    def create_database(self, template: str = "template0") -> str:
        """Create a database as a copy of another one. Returns its name."""
        name = f"test_{next(self.numbers)}"
        self.run_sql(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE {template}")
        return name

    @functools.cached_property
    def migrated(self) -> str:
        """A template database with the current schema. Copying it is much faster than migrating."""
        name = self.create_database()
        migrate(self.url(name))
        return name

    @contextmanager
    def new_database(self, _directory: Path | None = None, *, with_tables: bool = True) -> Iterator[str]:
        """The URL of a database without a session, which is removed afterwards. It needs no directory."""
        name = self.create_database(self.migrated if with_tables else "template0")
        yield self.url(name)
        self.drop_database(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, and end the connections to it."""
        self.run_sql(f"DROP DATABASE {name} WITH (FORCE)")

    def run_sql(self, statement: str) -> None:
        """Run one statement that concerns the whole server."""
        with connected(self.url("postgres", SUPERUSER)) as connection:
            connection.execute(statement.encode())

    def _run(self, name: str, *words: object) -> None:
        command = [str(_program(name)), *map(str, words)]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **_identity())
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection to a database in autocommit mode."""
    import psycopg

    conninfo = url.replace("+psycopg", "")
    with psycopg.connect(conninfo, autocommit=True, options="-c timezone=UTC") as connection:
        yield connection


@contextmanager
def dumped_and_restored(url: str, archive: Path) -> Iterator[str]:
    """Dump a database with `pg_dump` and restore it. Yields the URL of the copy, which is removed at the end."""
    parsed = make_url(url)
    name = f"{parsed.database}_restored"
    where = ["--host", str(parsed.query["host"]), "--username"]
    new = ["--owner", OWNER, "--encoding", "UTF8", "--template", "template0"]
    for command in (
        ["pg_dump", *where, OWNER, "--format=custom", "--file", str(archive), str(parsed.database)],
        ["createdb", *where, SUPERUSER, *new, name],
        ["pg_restore", *where, OWNER, "--exit-on-error", "--single-transaction", "--dbname", name, str(archive)],
    ):
        subprocess.run([str(_program(command[0])), *command[1:]], check=True)
    yield parsed.set(database=name).render_as_string(hide_password=False)
    subprocess.run([str(_program("dropdb")), *where, SUPERUSER, "--force", name], check=True)


@contextmanager
def running_pooler(cluster: Cluster, url: str) -> Iterator[str]:
    """Start PgBouncer with transaction pooling. Yields the URL of a database through it."""
    program = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if program is None:
        pytest.skip("PgBouncer is not installed on this machine")
    users, configuration = cluster.directory / "users.txt", cluster.directory / "pgbouncer.ini"
    users.write_text(f'"{OWNER}" ""\n', encoding="utf-8")
    configuration.write_text(
        f"[databases]\n* = host={cluster.directory}\n"
        f"[pgbouncer]\npool_mode = transaction\nunix_socket_dir = {cluster.directory}\n"
        f"auth_type = trust\nauth_file = {users}\n",
        encoding="utf-8",
    )
    process = subprocess.Popen([*_guard("TERM"), program, "--quiet", str(configuration)], **_identity())
    try:
        wait_until((cluster.directory / ".s.PGSQL.6432").exists)
        yield make_url(url).set(port=6432).render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def running_cluster(**settings: str) -> Iterator[Cluster]:
    """Start a new server, which is removed at the end. The arguments override SETTINGS.

    A server that listens has a free port, because another one of the machine may have the usual port of all addresses.
    """
    made = Path(
        tempfile.mkdtemp(prefix="neops-remote-lab-postgresql-")
    )  # short, because the path of a socket is limited
    port = {"port": str(free_port())} if settings.get("listen_addresses") else {}
    cluster = Cluster(made, settings=SETTINGS | port | settings)
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            os.chown(made, user.pw_uid, user.pw_gid)
        cluster.initialize()
        cluster.start()
        cluster.run_sql(f"CREATE USER {OWNER}")
        cluster.run_sql(f"CREATE USER {AUTHENTICATED} PASSWORD '{cluster.password}' IN ROLE {OWNER}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(made)


def _program(name: str) -> Path:
    directory = programs()
    assert directory
    return directory / name


def _guard(name: str) -> list[str]:
    """A command prefix with which the kernel sends a signal to the program if the test run is killed."""
    return ["setpriv", "--pdeathsig", name] if shutil.which("setpriv") else []


def _identity() -> dict[str, Any]:
    """Options of `subprocess` for a process that must not run as root."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(UNPRIVILEGED)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
