"""The server program without fencing, for the test of the ledger.

A server that others have declared silent or gone continues to write for its host.
"""

from unittest.mock import patch

from sqlalchemy.ext.asyncio import AsyncConnection

from neops_remote_lab.cli.main import main
from neops_remote_lab.store.sql.fence import Fence


async def check_nothing(_fence: Fence, _connection: AsyncConnection) -> None:
    """Let every write pass."""


if __name__ == "__main__":
    with patch.object(Fence, "check", check_nothing):
        main()
