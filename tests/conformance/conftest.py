"""Fixtures for tests that run once with each database."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import pytest_asyncio

from neops_remote_lab.store.protocol import LabStore, SessionStore
from neops_remote_lab.store.rows import Registration
from tests.stores import OpenStores, opened

Opener = Callable[[], AbstractAsyncContextManager[OpenStores]]


@pytest.fixture
def open_stores(database: str) -> Opener:
    """Opens the database of the test; each call makes a new connection."""
    return lambda: opened(database)


@pytest_asyncio.fixture
async def stores(open_stores: Opener) -> AsyncIterator[OpenStores]:
    async with open_stores() as opened_stores:
        yield opened_stores


@pytest_asyncio.fixture
async def sessions(stores: OpenStores) -> SessionStore:
    store = stores.sessions()
    await store.register_host(Registration("boot-1"))
    return store


@pytest.fixture
def labs(stores: OpenStores) -> LabStore:
    return stores.labs()
