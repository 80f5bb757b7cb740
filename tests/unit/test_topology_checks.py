"""What is kept of checked topologies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event
from typing import Any
from unittest.mock import AsyncMock, Mock

from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.labs.acquires import Upload
from neops_remote_lab.labs.settings import LabSettings
from neops_remote_lab.labs.topology_checks import TopologyChecks
from neops_remote_lab.netlab.commands import Prepared
from neops_remote_lab.netlab.workspace import Workspace, copy_topology
from tests.fakes import topology_text


def create(workspace: Workspace, _interrupt: Event) -> Prepared:
    """Prepare a lab as netlab would."""
    workspace.snapshot.touch()
    return Prepared([], 0)


async def in_thread(function: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def test_prepared_labs_of_sessions_that_ended_are_removed_by_several_calls_at_once(tmp_path: Path) -> None:
    topology, work_dir, live = tmp_path / "topology.yml", tmp_path / "labs", {"first", "second", "third"}
    topology.write_text(topology_text(1), encoding="utf-8")
    queue = Mock(place=lambda session_id: session_id if session_id in live else None)

    async def work() -> None:
        checks = TopologyChecks(
            Mock(create=create), LabSettings(), admission=AsyncMock(), queue=queue, run_blocking=in_thread
        )
        for session_id in sorted(live):
            workspace = copy_topology(TopologyFiles.of(topology, ()), work_dir, "test-host")
            await checks.check(session_id, Upload(workspace, reuse=True))
        prepared = len(list(work_dir.glob("*/lab")))
        assert prepared == len(live)
        live.clear()
        await asyncio.gather(checks.reconcile(), checks.reconcile(), checks.reconcile())

    asyncio.run(work())
    assert list(work_dir.glob("*/lab")) == []
