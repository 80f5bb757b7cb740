"""SQLite: query plans of frequent statements, and settings of the connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from neops_remote_lab.store.sql import urls
from neops_remote_lab.store.sql.sessions import LIVE, LIVE_LISTED, PROMOTE, end_statement, join_statement
from neops_remote_lab.store.sql.tables import METADATA
from neops_remote_lab.store.sqlite.database import DIALECT, SqliteDatabase
from tests.chaos.shell import sql
from tests.stores import new_sqlite_file


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The database file."""
    with new_sqlite_file(tmp_path) as url:
        file = urls.sqlite_file(urls.parse(url))
        assert file
        yield file


def test_a_view_is_read_only(path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        sql(path, "DELETE FROM active")


@pytest.mark.parametrize(
    "statement",
    [PROMOTE, end_statement(DIALECT), LIVE, LIVE_LISTED.format(listed=DIALECT.listed), join_statement(DIALECT)],
    ids=["promote", "end", "live", "some that are live", "join"],
)
def test_frequent_statements_use_an_index(path: Path, statement: str) -> None:
    names = ("queue", "now", "code", "detail")
    parameters = {**dict.fromkeys(names, "x"), "session_ids": "[]", "joining": "[]"}
    with closing(sqlite3.connect(path)) as database:
        plan = [row[-1] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    scanned = {step.split()[1] for step in plan if step.startswith("SCAN")}
    assert not scanned & {"busy", *(METADATA.tables.keys() - {"queue", "lab_host", "slot"})}


@pytest.mark.parametrize(("level", "number"), [("FULL", 2), ("NORMAL", 1), ("EXTRA", 3)])
async def test_the_connection_is_set_up_for_durability(path: Path, level: str, number: int) -> None:
    database = SqliteDatabase(urls.parse(str(path)), synchronous=level)

    async def pragma(name: str) -> Any:
        return await database.read(lambda connection: _pragma(connection, name))

    assert await pragma("synchronous") == number
    assert await pragma("journal_mode") == "wal"
    assert await pragma("foreign_keys") == 1
    await database.close()


async def _pragma(connection: Any, name: str) -> Any:
    return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
