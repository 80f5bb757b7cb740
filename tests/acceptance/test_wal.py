"""The database's write-ahead log while another program reads the database, and after it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.acceptance.test_metrics import scrape
from tests.fakes import wait_until
from tests.server import LabServer, running_server

LIMIT = 1 << 20


def log_size(server: LabServer) -> int:
    return server.database.with_name(f"{server.database.name}-wal").stat().st_size


def test_a_write_ahead_log_that_a_reader_makes_grow_is_reported_and_truncated_afterwards(tmp_path: Path) -> None:
    with running_server(tmp_path, wal_limit=str(LIMIT)) as server:
        with (
            closing(sqlite3.connect(server.database, isolation_level=None)) as reader,
            closing(sqlite3.connect(server.database, isolation_level=None)) as writer,
        ):
            writer.execute("CREATE TABLE ballast (content BLOB)")
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM session").fetchall()
            for _ in range(3):
                writer.execute("INSERT INTO ballast VALUES (zeroblob(?))", [LIMIT])
            assert log_size(server) > LIMIT
            wait_until(lambda: "another program reads the database" in server.log.read_text(), 20)
            wait_until(lambda: scrape(server)["database_wal_bytes"] > LIMIT, 20)
            assert server.status(server.join())["position"] == 0
            assert log_size(server) > LIMIT
            reader.execute("COMMIT")
            wait_until(lambda: log_size(server) < LIMIT, 20)
        wait_until(lambda: scrape(server)["database_wal_bytes"] < LIMIT, 20)
        assert server.log.read_text().count("another program reads the database") == 1
