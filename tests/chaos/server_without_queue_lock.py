"""The server program without the lock of the queue's row, for the test of the ledger.

Servers that add sessions, or make them active, at the same time do not see each other's changes.
"""

from typing import Any
from unittest.mock import patch

from neops_remote_lab.cli.main import main
from neops_remote_lab.store.postgresql.database import PostgresqlDatabase
from neops_remote_lab.store.sql.database import Statement

locked = PostgresqlDatabase.run


async def unlocked(
    database: PostgresqlDatabase, *statements: Statement, queue: str | None = None, shielded: bool = True
) -> list[list[Any]]:
    """Run statements without the lock of the queue."""
    del queue
    return await locked(database, *statements, shielded=shielded)


if __name__ == "__main__":
    with patch.object(PostgresqlDatabase, "run", unlocked):
        main()
