"""Repeated requests of one acquire: each response with a lab has a reference to the lab."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neops_remote_lab.core.identity import Identity
from neops_remote_lab.labs.acquires import Acquire, Upload
from neops_remote_lab.labs.coordinator import LabCoordinator
from neops_remote_lab.labs.running import Running
from neops_remote_lab.netlab.lab_life import Decision, Operation, Step
from neops_remote_lab.netlab.workspace import Workspace


class StubHost:
    """The store, the slot and the host lab of a coordinator.

    A start lasts until `is_up` is set, and the removal of an upload until `is_removed` is set.
    """

    def __init__(self) -> None:
        self.is_up, self.is_removed = asyncio.Event(), asyncio.Event()
        self.begun: list[Acquire] = []
        self.references: list[str | None] = []
        self.devices: list[Any] = []
        self.held: Workspace | None = None

    def next_step(self, _acquire: Acquire) -> Decision:
        return Decision(Step.SHARE if self.begun and self.is_up.is_set() else Step.START)

    def carry_out(self, _decision: Decision, acquire: Acquire) -> Running:
        self.begun.append(acquire)
        self.held = acquire.upload.workspace
        return Running(Operation.START, asyncio.create_task(self._start(acquire)), acquire)

    async def _start(self, acquire: Acquire) -> None:
        await self.is_up.wait()
        await self.add_reference(acquire)

    async def add_reference(self, acquire: Acquire) -> bool:
        if acquire.takes_reference():
            self.references.append(acquire.key)
        return True

    async def reference_by_key(self, _session_id: str, _key: str) -> None:
        return None

    async def run_blocking(self, _function: Callable[..., Any], *_arguments: object) -> None:
        await self.is_removed.wait()


@pytest.fixture
def host() -> StubHost:
    return StubHost()


@pytest.fixture
def coordinator(host: StubHost) -> LabCoordinator:
    parts: dict[str, Any] = {"store": host, "slot": host, "host_lab": host, "run_blocking": host.run_blocking}
    parts |= {"queue": SimpleNamespace(is_active=lambda _: True), "failed_logs": None, "artifacts": None}
    made = LabCoordinator(**parts)
    made._recovered.set()
    return made


def upload(name: str) -> Upload:
    return Upload(Workspace(name, Path("/labs") / name, "t.yml", Identity("a" * 64)), reuse=True)


async def run_loop(turns: int = 10) -> None:
    """Let other tasks run for so many turns of the event loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_repeated_request_has_a_reference_although_its_upload_is_still_being_removed(
    host: StubHost, coordinator: LabCoordinator
) -> None:
    first = asyncio.create_task(coordinator.acquire("ann", upload("one"), "key"))
    await run_loop()
    first.cancel()
    await run_loop()
    again = asyncio.create_task(coordinator.acquire("ann", upload("two"), "key"))
    await run_loop()
    host.is_up.set()
    await run_loop()
    host.is_removed.set()
    await again
    assert host.references == ["key"]


@pytest.mark.parametrize("pause", range(8))
async def test_a_request_that_is_repeated_when_the_lab_is_running_has_a_reference(
    host: StubHost, coordinator: LabCoordinator, pause: int
) -> None:
    host.is_removed.set()
    first = asyncio.create_task(coordinator.acquire("ann", upload("one"), "key"))
    await run_loop()
    first.cancel()
    await run_loop()
    host.is_up.set()
    await run_loop(pause)
    await coordinator.acquire("ann", upload("two"), "key")
    assert host.references == ["key"]
