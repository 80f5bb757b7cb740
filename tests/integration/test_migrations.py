"""Migrations: they create the declared tables, can be undone and repeated, and are packed into the wheel."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine
from sqlalchemy.engine import Engine

from neops_remote_lab.store.protocol import DatabaseError
from neops_remote_lab.store.sql.migrate import HEAD, migrate
from neops_remote_lab.store.sql.tables import METADATA
from tests.chaos.shell import sql
from tests.postgresql import Cluster

PROJECT = Path(__file__).parents[2]
SCRIPTS = PROJECT / "alembic"

CONDITIONS = {
    "uq_session_active_slot": "state = 'active'",
    "ix_session_waiting": "state = 'waiting'",
    "uq_session_live_key": "idempotency_key IS NOT NULL AND state IN ('waiting', 'active')",
    "ix_session_ended_at": "state = 'ended'",
    "uq_lab_live_slot": "state IN ('starting', 'running', 'stopping')",
    "uq_lab_live_number": "state IN ('starting', 'running', 'stopping')",
    "ix_lab_ended_at": "state = 'ended'",
    "uq_lab_reference_key": "idempotency_key IS NOT NULL AND released_at IS NULL",
}
"""The condition of each partial index."""


def url(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


def config(file: Path) -> Config:
    made = Config()
    made.set_main_option("script_location", str(SCRIPTS))
    made.set_main_option("sqlalchemy.url", f"sqlite:///{file}".replace("%", "%%"))
    return made


def schema(file: Path) -> dict[str, str]:
    """The SQL that created each table, index, view and trigger, by its type and name."""
    rows = sql(file, "SELECT type || ' ' || name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return {name: re.sub(r"\s+", " ", text or "") for name, text in rows}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "directory that is not there yet" / "100% lab.sqlite3"


@pytest.fixture
def engine(file: Path) -> Iterator[Engine]:
    migrate(url(file))
    made = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    yield made
    made.dispose()


def test_an_empty_database_gets_the_newest_schema(file: Path) -> None:
    migrate(url(file))
    assert sql(file, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    made = schema(file)
    assert {"table session", "table lab", "table lab_reference", "table lab_host", "table event"} <= made.keys()
    assert {"view waiting", "view active", "view current_lab", "view session_history"} <= made.keys()


def test_the_migrated_schema_is_the_declared_one(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_the_migrations_create_the_declared_tables(engine: Engine, file: Path, tmp_path: Path) -> None:
    """Compares conditions of indexes and constraints too, which alembic does not compare."""
    declared = tmp_path / "declared.sqlite3"
    other = create_engine(f"sqlite:///{declared}", poolclass=NullPool)
    METADATA.create_all(other)
    other.dispose()

    def parts(text: str) -> list[str]:
        return sorted(part.strip(" ()") for part in re.split(r",(?![^()]*\))|\n", text) if part.strip(" ()"))

    migrated = schema(file)
    for name, text in schema(declared).items():
        assert parts(migrated[name]) == parts(text), name


def test_partial_indexes_have_their_conditions(engine: Engine, file: Path) -> None:
    found = schema(file)
    for name, condition in CONDITIONS.items():
        assert found[f"index {name}"].endswith(f"WHERE {condition}"), name
    unique = {name for name, text in found.items() if text.startswith("CREATE UNIQUE INDEX")}
    assert unique == {f"index {name}" for name in CONDITIONS if name.startswith("uq_")}


def test_a_migrated_database_is_not_changed(file: Path) -> None:
    migrate(url(file))
    before = file.read_bytes()
    migrate(url(file))
    assert file.read_bytes() == before


def test_the_newest_migration_is_the_one_that_the_program_expects(tmp_path: Path) -> None:
    scripts = ScriptDirectory.from_config(config(tmp_path / "x"))
    assert scripts.get_heads() == [HEAD]
    assert len(scripts.get_bases()) == 1


def test_every_migration_can_be_downgraded_and_repeated(file: Path) -> None:
    migrate(url(file))
    first = schema(file)
    command.downgrade(config(file), "base")
    assert set(schema(file)) == {"table alembic_version"}
    for revision in reversed(list(ScriptDirectory.from_config(config(file)).walk_revisions())):
        command.upgrade(config(file), revision.revision)
        command.downgrade(config(file), "-1")
        command.upgrade(config(file), revision.revision)
    assert schema(file) == first


def test_a_start_that_was_interrupted_before_its_first_table_is_repeated(file: Path) -> None:
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    migrate(url(file))
    assert sql(file, "SELECT version_num FROM alembic_version") == [(HEAD,)]


def test_a_newer_schema_is_refused_with_a_message(file: Path) -> None:
    migrate(url(file))
    sql(file, "UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes()
    with pytest.raises(
        RuntimeError, match="schema 9999, which this version does not know: it was created by a newer one"
    ):
        migrate(url(file))
    assert file.read_bytes() == before


def test_the_database_of_another_program_is_refused_with_a_message(file: Path) -> None:
    file.parent.mkdir()
    sql(file, "CREATE TABLE recipes (name TEXT)")
    with pytest.raises(RuntimeError, match="not a database of neops-remote-lab: it has the table recipes"):
        migrate(url(file))
    assert set(schema(file)) == {"table recipes"}


def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("dear diary, " * 1000)
    with pytest.raises(DatabaseError):
        migrate(url(file))
    assert file.read_text().startswith("dear diary")


# PostgreSQL


@pytest.fixture
def empty(cluster: Cluster) -> Iterator[str]:
    """A PostgreSQL database without a table."""
    with cluster.new_database(with_tables=False) as made:
        yield made


CONSTRAINTS = "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint ORDER BY 1, 2"
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
FUNCTIONS = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"


def test_the_migrations_create_the_declared_tables_in_postgresql(empty: str, cluster: Cluster) -> None:
    migrate(empty)
    engine = create_engine(empty, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []
    with cluster.new_database(with_tables=False) as declared:
        other = create_engine(declared, poolclass=NullPool)
        METADATA.create_all(other)
        for query in (CONSTRAINTS, INDEXES):
            migrated = [row for row in sql(empty, query) if "alembic" not in row[0]]
            assert [row for row in migrated if "pg_" not in row[0]] == [
                row for row in sql(declared, query) if "pg_" not in row[0]
            ]


def test_every_migration_can_be_downgraded_and_repeated_in_postgresql(empty: str) -> None:
    migrate(empty)
    made = Config()
    made.set_main_option("script_location", str(SCRIPTS))
    made.set_main_option("sqlalchemy.url", empty.replace("%", "%%"))
    functions = sql(empty, FUNCTIONS)
    command.downgrade(made, "base")
    assert sql(empty, FUNCTIONS) == []
    assert sql(empty, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1") == [
        ("alembic_version",),
        ("alembic_version_pkc",),
    ]
    migrate(empty)
    assert sql(empty, FUNCTIONS) == functions


def test_a_postgresql_database_of_another_program_or_version_is_refused(empty: str) -> None:
    sql(empty, "CREATE TABLE recipes (name text)")
    with pytest.raises(RuntimeError, match="not a database of neops-remote-lab: it has the table recipes"):
        migrate(empty)
    sql(empty, "DROP TABLE recipes")
    migrate(empty)
    sql(empty, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(RuntimeError, match="schema 9999, which this version does not know"):
        migrate(empty)


def test_several_servers_that_start_together_create_one_schema(empty: str) -> None:
    script = f"from neops_remote_lab.store.sql.migrate import migrate; migrate({empty!r})"
    servers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [server.wait(60) for server in servers] == [0, 0, 0]
    assert sql(empty, "SELECT version_num FROM alembic_version") == [(HEAD,)]


def test_the_wheel_contains_its_migrations_and_can_run_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "bench", "dist", "build")
    shutil.copytree(PROJECT, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    wheels = tmp_path / "wheels"
    built = subprocess.run(
        [*build, "--wheel-dir", str(wheels), str(source)], capture_output=True, text=True, timeout=150, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(site)
    packed = "neops_remote_lab/store/sql/alembic"
    for version in (SCRIPTS / "versions").glob("*.py"):
        assert f"{packed}/versions/{version.name}" in names
    assert {f"{packed}/env.py", "neops_remote_lab/py.typed", "neops_remote_lab/api/static/docs.html"} <= names
    assert not [name for name in names if name.startswith(("tests/", "alembic/"))]

    database = tmp_path / "installed.sqlite3"
    script = f"from neops_remote_lab.store.sql.migrate import migrate; migrate({url(database)!r})"
    environment = {"PYTHONPATH": str(site), "PATH": ""}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, timeout=60, check=True)
    assert sql(database, "SELECT version_num FROM alembic_version") == [(HEAD,)]

    (metadata,) = importlib.metadata.distributions(name="neops-remote-lab", path=[str(site)])
    entry_points = {(entry.group, entry.name): entry.value for entry in metadata.entry_points}
    assert entry_points["console_scripts", "neops-remote-lab"] == "neops_remote_lab.__main__:main"
    assert entry_points["pytest11", "neops-remote-lab"] == "neops_remote_lab.testing.plugin"
