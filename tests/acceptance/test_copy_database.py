"""`copy-database`: a queue moves from SQLite to PostgreSQL and back, completely or not at all."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.engine import make_url

from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.migrate import synchronous
from neops_remote_lab.store.sql.tables import METADATA
from tests.chaos.shell import ask, fake, is_active, lab, sql
from tests.commands import Shell
from tests.fakes import topology_text, wait_until
from tests.postgresql import AUTHENTICATED, Cluster
from tests.server import LabServer, running_server
from tests.stores import new_sqlite_file, sqlite_url

TOPOLOGY = topology_text(nodes=2)


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    """A PostgreSQL database without a table."""
    with cluster.new_database(with_tables=False) as url:
        yield url


@pytest.fixture
def used(tmp_path: Path) -> Iterator[LabServer]:
    """A server with a history, an active session with a running lab, and waiting sessions."""
    with running_server(tmp_path, on_exit="keep") as server:
        past = server.join(client="Zoë 🧪")
        assert server.acquire(past, TOPOLOGY).status_code == 200
        assert ask(server, past, "DELETE", f"/session/{past}").status_code == 204
        holder = server.join(client="holder")
        wait_until(server.is_clean)
        assert server.acquire(holder, TOPOLOGY).status_code == 200
        for number in range(3):
            server.join(client=f"client {number}")
        sql(server.database, "UPDATE session SET rank = 0 WHERE client = 'client 2'")
        sql(server.database, "DELETE FROM session WHERE client = 'client 1'")
        sql(server.database, "UPDATE session SET end_detail = 'a' || char(0) || 'z' WHERE state = 'ended'")
        wait_until(lambda: clients(server) == ["holder", "client 2", "client 0"])
        yield server


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell("", tmp_path / "shell")


def clients(server: LabServer) -> list[str]:
    """The clients of the active and the waiting sessions, in order."""
    return [entry["client"] for entry in json.loads(ask(server, "", "GET", "/queue").text)["sessions"]]


def rows(database: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    engine = create_engine(synchronous(urls.parse(database)), poolclass=NullPool)
    with engine.connect() as connection:
        return {
            table.name: [
                tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key.columns)).all()
            ]
            for table in METADATA.sorted_tables
        }


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "nothing was copied" in done.stderr
    return done.stderr


def test_a_server_continues_the_queue_and_its_lab_with_the_other_database(
    used: LabServer, empty: str, shell: Shell
) -> None:
    before = json.loads(ask(used, "", "GET", "/queue").text)["sessions"]
    holder, *_ = sql(used.database, "SELECT session_id FROM active")[0]
    used.stop()
    assert "session 4" in shell.do("copy-database", used.database_url, empty)
    used.settings["database"] = empty
    used.start()
    after = json.loads(ask(used, "", "GET", "/queue").text)["sessions"]
    assert [entry["session_id"] for entry in after] == [entry["session_id"] for entry in before]
    wait_until(lambda: lab(used, holder)["running"])
    assert lab(used, holder)["ref_count"] == 1
    assert used.join()
    numbers = [number for (number,) in sql(empty, "SELECT number FROM session ORDER BY number")]
    assert numbers == [1, 2, 3, 5, 6]
    used.settings["on-exit"] = "down"
    assert ask(used, holder, "DELETE", f"/session/{holder}").status_code == 204
    wait_until(used.is_clean)
    assert fake(used).violations() == []


def test_a_copy_and_its_copy_have_the_same_rows(used: LabServer, empty: str, shell: Shell, tmp_path: Path) -> None:
    used.stop()
    original = rows(used.database_url)
    shell.do("copy-database", str(used.database), empty)
    back = tmp_path / "back.sqlite3"
    shell.do("copy-database", empty, str(back))
    copied = rows(empty)
    assert rows(sqlite_url(back)) == copied
    assert stat.S_IMODE(back.stat().st_mode) == 0o600
    for table, kept in original.items():
        texts = [[value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row] for row in kept]
        assert [list(row) for row in copied[table]] == texts, table
    assert sql(back, "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY 1") == sql(
        used.database, "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY 1"
    )
    for column in ("name", "seq"):
        query = f"SELECT {column} FROM sqlite_sequence WHERE seq > 0 ORDER BY name"  # noqa: S608
        assert sql(back, query) == sql(used.database, query)


def test_a_database_that_a_server_uses_is_neither_read_nor_written(
    used: LabServer, empty: str, shell: Shell, tmp_path: Path
) -> None:
    message = refusal(shell.run("copy-database", used.database_url, empty))
    assert f"another program uses the database {used.database}: stop the server first" in message
    assert sql(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    used.stop()
    with running_server(tmp_path / "other", database=empty) as other:
        other.join()
        assert "stop the server first" in refusal(shell.run("copy-database", empty, str(tmp_path / "new.sqlite3")))
        assert not (tmp_path / "new.sqlite3").exists()
        assert "stop the server first" in refusal(shell.run("copy-database", used.database_url, empty))
        assert is_active(other, other.join()) is False


def test_only_an_empty_database_is_written(used: LabServer, empty: str, shell: Shell) -> None:
    used.stop()
    shell.do("copy-database", used.database_url, empty)
    before = rows(empty)
    assert "is not empty: it has rows in the table" in refusal(shell.run("copy-database", used.database_url, empty))
    assert rows(empty) == before


def test_the_database_of_another_program_is_not_written(used: LabServer, empty: str, shell: Shell) -> None:
    used.stop()
    sql(empty, "CREATE TABLE recipes (name text)")
    assert "it has the table recipes" in refusal(shell.run("copy-database", used.database_url, empty))


def test_only_a_database_of_this_version_is_read(empty: str, shell: Shell, tmp_path: Path) -> None:
    absent = tmp_path / "absent.sqlite3"
    assert "there is no database" in refusal(shell.run("copy-database", str(absent), empty))
    assert not absent.exists()
    with new_sqlite_file(tmp_path) as old:
        sql(old, "UPDATE alembic_version SET version_num = '0000'")
        assert "has schema 0000" in refusal(shell.run("copy-database", old, empty))
    assert sql(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_a_row_that_the_target_refuses_leaves_it_empty(used: LabServer, empty: str, shell: Shell) -> None:
    used.stop()
    sql(used.database, "DELETE FROM lab")  # the references are left: SQLite's shell does not check them
    assert "foreign key" in refusal(shell.run("copy-database", used.database_url, empty))
    assert all(found == [] for table, found in rows(empty).items() if table != "queue")
    with running_server(used.root / "other", database=empty) as other:
        assert other.join()


def test_a_password_is_not_shown(empty: str, cluster: Cluster, shell: Shell, tmp_path: Path) -> None:
    secret = make_url(empty).set(username=AUTHENTICATED, password=cluster.password)
    name = secret.render_as_string(hide_password=False)
    with new_sqlite_file(tmp_path) as source:
        shown = [
            shell.do("copy-database", source, name),
            refusal(shell.run("copy-database", name, name)),
            refusal(shell.run("copy-database", source, name.replace("/test_", "/absent_"))),
        ]
    assert f"{AUTHENTICATED}:***@" in shown[1]
    for text in shown:
        assert cluster.password not in text
        assert name.partition(f"{AUTHENTICATED}:")[2].rpartition("@")[0] not in text
