"""The upload and the state of one acquire, from its first request to its answer."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.models import AcquireResponseDto
from neops_remote_lab.netlab.workspace import Workspace, remove_workspace


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent: a workspace with the topology and its extra files."""

    workspace: Workspace
    reuse: bool


@dataclass(eq=False)
class Acquire:
    """One acquire. Repeated requests with the same idempotency key share it."""

    session_id: str
    upload: Upload
    key: str | None
    in_advance: bool = False
    """The lab starts while its session waits, and only if it can start at once."""
    present: int = 0
    """Number of requests that wait for the answer. If it is 0, the acquire adds no reference."""
    is_abandoned: bool = False
    """It adds no reference, because no request waited. A repeated request begins another acquire."""
    interrupt: threading.Event = field(default_factory=threading.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the start of the lab is recorded in the database."""
    task: asyncio.Task[AcquireResponseDto] | None = None

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A context for a request that waits for the answer."""
        self.present += 1
        try:
            yield
        finally:
            self.present -= 1

    def takes_reference(self) -> bool:
        """Whether the acquire adds a reference. It is decided once, when the lab runs."""
        self.is_abandoned = not self.present
        return not self.is_abandoned


async def discard(workspace: Workspace, run_blocking: RunBlocking) -> None:
    """Remove a workspace in which nothing was started, also if the caller is cancelled meanwhile.

    Work that still waits for a thread does not run after a cancellation, and nobody else knows the workspace.
    """
    await asyncio.shield(asyncio.ensure_future(run_blocking(remove_workspace, workspace.base)))
