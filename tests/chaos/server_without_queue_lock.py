"""The server program with the lock of the queue's row taken out: the ledger must notice.

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
    """Run statements without waiting for those of other servers."""
    del queue
    return await locked(database, *statements, shielded=shielded)


if __name__ == "__main__":
    with patch.object(PostgresqlDatabase, "run", unlocked):
        main()
