"""The fixtures: each test runs once for each database."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from neops_remote_lab.store.protocol import LabStore, SessionStore
from tests.stores import OPENERS, Stores

Opener = Callable[[], AbstractAsyncContextManager[Stores]]


@pytest.fixture(params=OPENERS)
def open_stores(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens one and the same database, as often as a test likes."""
    return lambda: OPENERS[request.param](tmp_path)


@pytest_asyncio.fixture
async def stores(open_stores: Opener) -> AsyncIterator[Stores]:
    async with open_stores() as opened:
        yield opened


@pytest_asyncio.fixture
async def sessions(stores: Stores) -> SessionStore:
    store = stores.sessions()
    await store.register_host("boot-1")
    return store


@pytest.fixture
def labs(stores: Stores) -> LabStore:
    return stores.labs()
