"""One acquire on its way, from its first request to its answer."""

import asyncio
import threading
from dataclasses import dataclass, field

from neops_remote_lab.models import AcquireResponseDto
from neops_remote_lab.netlab.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Upload:
    """What a client sent: a workspace with the topology and its extra files."""

    workspace: Workspace
    reuse: bool


@dataclass(eq=False)
class Acquire:
    """Requests that are repeated with the same key share one."""

    session_id: str
    upload: Upload
    key: str | None
    present: int = 0
    """Requests that wait for the answer. Without any the lab is not counted as held."""
    interrupt: threading.Event = field(default_factory=threading.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the start of the lab is written down."""
    task: asyncio.Task[AcquireResponseDto] | None = None
