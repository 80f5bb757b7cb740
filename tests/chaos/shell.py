"""Helpers that act from outside the server: SQL from another program, processes, and calls of a session."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil
import pytest

from neops_remote_lab.netlab import preload
from neops_remote_lab.store.sql import urls
from tests.fakes import FakeNetlab, wait_until
from tests.postgresql import connected
from tests.server import LabServer

SQL_TAKES_EFFECT = 2.0
"""Seconds within which the server notices a change of its database by another program."""


class Shell(Protocol):
    """Runs statements as the `sqlite3` shell or `psql` does: each at once, in SQLite without foreign keys."""

    def __call__(self, statement: str, /, *values: object) -> list[tuple[Any, ...]]:
        """Run SQL with `?` for each value; its rows."""


@contextmanager
def open_shell(database: Path | str) -> Iterator[Shell]:
    """A shell with a SQLite file, or with what `--database` names."""
    if isinstance(database, str) and (file := urls.sqlite_file(urls.parse(database))):
        database = file
    if isinstance(database, str):
        with connected(database) as connection:

            def run(statement: str, /, *values: object) -> list[tuple[Any, ...]]:
                cursor = connection.execute(statement.replace("%", "%%").replace("?", "%s").encode(), values)
                return cursor.fetchall() if cursor.description else []

            yield run
        return
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as file_connection:
        yield lambda statement, *values: file_connection.execute(statement, values).fetchall()


def sql(database: Path | str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement in a shell of its own."""
    with open_shell(database) as shell:
        return shell(statement, *values)


def refused(database: str) -> AbstractContextManager[Any]:
    """Expect that the database refuses a statement because of a constraint."""
    if database.startswith("sqlite"):
        return pytest.raises(sqlite3.IntegrityError, match="constraint failed")
    import psycopg

    return pytest.raises((psycopg.IntegrityError, psycopg.DataError, psycopg.errors.DatatypeMismatch))


@contextmanager
def locked(database: Path | str) -> Iterator[None]:
    """Lock the database with an open transaction, so that no other program can write."""
    if isinstance(database, str) and (file := urls.sqlite_file(urls.parse(database))):
        database = file
    if isinstance(database, str):
        with connected(database) as connection, connection.transaction():
            connection.execute("LOCK TABLE queue, session, lab, lab_reference, lab_host, event IN EXCLUSIVE MODE")
            yield
        return
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as file_connection:
        file_connection.execute("BEGIN EXCLUSIVE")
        yield
        file_connection.execute("ROLLBACK")


@contextmanager
def in_background(call: Any, *arguments: Any, **options: Any) -> Iterator[Future[Any]]:
    """Begin a long call in a thread; reading the result waits for it."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *arguments, **options)


def fake(server: LabServer) -> FakeNetlab:
    """The fake lab host behind a server."""
    assert isinstance(server.fake, FakeNetlab)
    return server.fake


def wait_for_event(host: FakeNetlab, event: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
    """Wait until the fake netlab has logged `count` such events. Returns their lines."""
    found: list[dict[str, Any]] = []

    def happened() -> bool:
        found[:] = [
            line
            for line in host.log()
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]
        return len(found) >= count

    wait_until(happened, 30, f"no {event} {fields} in the log of the fake netlab")
    return found


def phase(host: FakeNetlab, name: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until the fake netlab has begun a phase `count` times."""
    return wait_for_event(host, "phase", count, phase=name)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(server: LabServer) -> list[int]:
    """The ids of all processes that the server has started, orphans included."""
    state = str(fake(server).state)
    server_pid = server.process.pid if server.process else None
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FAKE_NETLAB_STATE") == state and process.pid != server_pid:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def preloaded_netlabs(server: LabServer) -> list[int]:
    """The ids of the server's preloaded netlab processes."""
    assert server.process is not None
    found = []
    for child in psutil.Process(server.process.pid).children():
        with suppress(psutil.NoSuchProcess):
            found += [child.pid] if preload.__file__ in child.cmdline() else []
    return found


def lab(server: LabServer, session_id: str) -> dict[str, Any]:
    """The response to `GET /lab`."""
    with server.client(session_id) as client:
        answer = client.get("/lab")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ask(server: LabServer, session_id: str, method: str, path: str, **options: Any) -> httpx.Response:
    """Send one call with the id of a session."""
    with server.client(session_id) as client:
        return client.request(method, path, **options)


def queue(server: LabServer) -> dict[str, Any]:
    """The response to `GET /queue`."""
    answer = httpx.get(f"{server.url}/queue")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def is_active(server: LabServer, session_id: str) -> bool:
    """Whether a session is active."""
    return bool(server.status(session_id)["position"] == 0)


def container_ids(host: FakeNetlab) -> list[str]:
    """The ids of all containers. A container that was created again has another id."""
    return sorted(str(container["full_id"]) for container in host.containers())
