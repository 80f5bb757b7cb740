"""The operation of a slot that is in progress."""

import asyncio
from dataclasses import dataclass

from neops_remote_lab.core.codes import OutcomeCode
from neops_remote_lab.labs.acquires import Acquire
from neops_remote_lab.netlab.lab_life import Operation


@dataclass(eq=False)
class Running:
    """The operation in progress."""

    operation: Operation
    task: asyncio.Task[None]
    acquire: Acquire | None = None
    """The acquire for which a lab is started."""
    stopped_for: OutcomeCode | None = None
    """Why the start was interrupted."""
