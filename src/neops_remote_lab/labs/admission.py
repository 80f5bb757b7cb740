"""Admission of starts on a host with several slots: a lab starts when the host has the memory that it needs.

The need is learned from earlier labs of the same topology. For a new topology, it is the sum over its nodes of what
most nodes of the same image used, or of a configured value.
"""

import asyncio
import logging
import math
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from neops_remote_lab.core.clock import Clock
from neops_remote_lab.core.codes import StartObstacle
from neops_remote_lab.core.identity import Identity
from neops_remote_lab.core.threads import RunBlocking
from neops_remote_lab.labs.acquires import Acquire, discard
from neops_remote_lab.labs.refusals import Reason, Refused
from neops_remote_lab.labs.settings import LabSettings
from neops_remote_lab.models import DeviceInfoDto
from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.memory import NodeMemory, images_of, memory_below
from neops_remote_lab.netlab.workspace import Workspace
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.protocol import DatabaseError, MemoryStore
from neops_remote_lab.store.rows import Lab

logger = logging.getLogger(__name__)

MARGIN: Final = 1.2
"""A lab may need this many times the memory that earlier labs of its topology used."""
START_BYTES: Final = 150 << 20
"""Memory of netlab and its helpers during a start."""
POLL: Final = 0.5
"""Seconds between two looks at the host's memory while a start waits."""


class Obstacle(NamedTuple):
    """Why a start waits, as a code and as a message."""

    code: StartObstacle
    detail: str


@dataclass(eq=False)
class _Admitted:
    """A lab that may start, starts or runs."""

    lab: Lab
    need: int
    """In bytes, without the memory of its start."""
    starting: bool = True
    used: int = 0
    """At the latest measurement, in bytes."""
    peak: int = 0
    """Of the whole lab, in bytes."""
    nodes: dict[str, NodeMemory] = field(default_factory=dict)
    """The highest measurement of each node."""

    @property
    def promised(self) -> int:
        """The memory that it may still claim, in bytes."""
        return max(0, self.need - self.used) + (START_BYTES if self.starting else 0)

    def measured(self, nodes: Sequence[NodeMemory]) -> None:
        """Add a measurement of all nodes."""
        self.used = sum(node.used for node in nodes)
        self.peak = max(self.peak, self.used)
        for node in nodes:
            known = self.nodes.get(node.container.name)
            self.nodes[node.container.name] = node if known is None or node.used > known.used else known


@dataclass(eq=False)
class _Waiting:
    """A start that is not admitted yet."""

    lab_id: str
    need: int
    """In bytes, with the memory of its start."""
    in_advance: bool = False
    obstacle: Obstacle | None = None


class Admission:
    """Admits starts in the order in which they were requested. A host with one slot admits everything at once."""

    def __init__(
        self,
        store: MemoryStore,
        netlab: NetlabCommands,
        queue: SessionQueue,
        settings: LabSettings,
        *,
        limits: bool,
        work_dir: Path,
        clock: Clock,
        run_blocking: RunBlocking,
    ) -> None:
        """`limits` says whether starts are limited at all."""
        self._store = store
        self._netlab = netlab
        self._queue = queue
        self._settings = settings
        self._work_dir = work_dir
        self._limits = limits
        self._clock = clock
        self._run_blocking = run_blocking
        self._admitted: dict[str, _Admitted] = {}
        self._waiting: list[_Waiting] = []
        self._changed = asyncio.Event()

    @property
    def limits(self) -> bool:
        """Whether starts are limited at all."""
        return self._limits

    @property
    def used(self) -> int:
        """The memory of all labs at the latest measurement, in bytes."""
        return sum(each.used for each in self._admitted.values())

    @property
    def memory_is_short(self) -> bool:
        """Whether a start waits for memory."""
        return any(obstacle.code is StartObstacle.MEMORY for obstacle in self.waiting)

    @property
    def waiting(self) -> list[Obstacle]:
        """What the waiting starts wait for, in their order."""
        return [waiting.obstacle for waiting in self._waiting if waiting.obstacle]

    def obstacle(self, lab_id: str) -> Obstacle | None:
        """What the start of a lab waits for; None if it does not wait."""
        return next((waiting.obstacle for waiting in self._waiting if waiting.lab_id == lab_id), None)

    async def require_possible(self, identity: Identity, devices: Sequence[DeviceInfoDto]) -> int:
        """The memory that a lab and its start need, in bytes.

        Raises:
            Refused: the lab can never start on this host.
        """
        need = await self._need(identity, devices) + START_BYTES
        most = psutil.virtual_memory().total - self._settings.memory_reserve
        if self.limits and need > most:
            detail = (
                f"the lab of {len(devices)} nodes needs about {_shown(need)} of memory, and this lab host has "
                f"{_shown(max(0, most))} for labs: use fewer nodes or smaller images"
            )
            raise Refused(Reason.TOO_LARGE, detail)
        return need

    async def _need(self, identity: Identity, devices: Sequence[DeviceInfoDto]) -> int:
        """The memory of the nodes of a lab, in bytes."""
        if known := await self._store.of_topology(identity):
            return math.ceil(MARGIN * known)
        images = images_of(devices)
        by_image = await self._store.of_images(set(images))
        return sum(by_image.get(image, self._settings.node_memory) for image in images)

    async def admit(self, lab: Lab, workspace: Workspace, acquire: Acquire) -> None:
        """Wait until a lab may start. The caller calls `started` after its start, and `ended` after its end.

        If this fails, the workspace is removed, because nothing was started in it.

        Raises:
            Refused: the lab can never start on this host, or a lab in advance would have to wait.
            InterruptedError: the acquire was interrupted.
            The exceptions of `NetlabCommands.create`.
        """
        if not self.limits:
            return
        try:
            devices = await self._run_blocking(self._netlab.prepare, workspace, acquire.interrupt)
            need = await self.require_possible(workspace.identity, devices)
            waiting = _Waiting(lab.lab_id, need, acquire.in_advance)
            await self._wait(lab, waiting, acquire.interrupt)
        except BaseException:
            await discard(workspace, self._run_blocking)
            raise

    async def _wait(self, lab: Lab, waiting: _Waiting, interrupt: threading.Event) -> None:
        self._waiting.append(waiting)
        try:
            while obstacle := self._obstacle_to(waiting):
                if waiting.in_advance:
                    raise Refused(Reason.BUSY, f"the lab does not start in advance: {obstacle.detail}")
                if waiting.obstacle is None:
                    logger.info("lab %s does not start yet: %s", lab.lab_id, obstacle.detail)
                waiting.obstacle = obstacle
                with suppress(DatabaseError):  # the start does not depend on it, and the maintenance loop repeats it
                    await self.hold_grants()
                await self._pause()
                if interrupt.is_set():
                    raise InterruptedError("the start was stopped")
            self._admitted[lab.lab_id] = _Admitted(lab, waiting.need - START_BYTES)
        finally:
            self._waiting.remove(waiting)
            self._changed.set()

    def _obstacle_to(self, waiting: _Waiting) -> Obstacle | None:
        """Why a lab cannot start now; None if it can."""
        first = self._waiting[0]
        if first is not waiting and first.obstacle:
            return Obstacle(first.obstacle.code, "another lab that was requested earlier waits too")
        starting = sum(each.starting for each in self._admitted.values())
        if starting >= self._settings.lab_starts:
            return Obstacle(StartObstacle.STARTS, f"{starting} other labs are starting, as many as may start at a time")
        promised = sum(each.promised for each in self._admitted.values())
        free = psutil.virtual_memory().available - promised - self._settings.memory_reserve
        if free >= waiting.need or not self._admitted:  # without another lab there is nothing to wait for
            return None
        missing = f"it needs about {_shown(waiting.need)} of memory, and {_shown(max(0, free))} are free"
        return Obstacle(StartObstacle.MEMORY, missing)

    async def hold_grants(self) -> None:
        """Keep sessions away from this host while a start waits for memory, and let them come again afterwards.

        Otherwise smaller labs could take the memory again and again. Nothing is written if nothing has changed.
        """
        await self._queue.hold_grants(on=self.memory_is_short)

    async def _pause(self) -> None:
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), POLL)

    async def adopt(self, lab: Lab, devices: Sequence[DeviceInfoDto]) -> None:
        """Count a lab that an earlier server started."""
        need = await self._need(Identity(lab.topology_sha256, lab.extra_sha256), devices)
        self._admitted[lab.lab_id] = _Admitted(lab, need, starting=False)

    def started(self, lab_id: str) -> None:
        """Let another lab start, because the start of this one has ended."""
        if admitted := self._admitted.get(lab_id):
            admitted.starting = False
            self._changed.set()

    async def ended(self, lab_id: str) -> None:
        """Free the memory of a lab whose containers are gone, and remember how much it used."""
        if admitted := self._admitted.pop(lab_id, None):
            self._changed.set()
            if admitted.peak:
                nodes = [(node.container.image, node.used) for node in admitted.nodes.values()]
                await self._store.record(lab_id, admitted.peak, nodes, self._clock.now())

    async def measure(self) -> None:
        """Measure the memory of all running labs."""
        labs = [each for each in self._admitted.values() if not each.starting]
        if not labs:
            return
        try:
            nodes = await self._run_blocking(memory_below, self._work_dir, self._netlab.docker)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            logger.info("the memory of the labs is unknown: %s", failure(error))
            return
        for admitted in labs:
            base = Path(admitted.lab.work_dir)
            admitted.measured([node for node in nodes if node.container.is_below(base)])
        self._changed.set()

    async def measure_repeatedly(self) -> None:
        """Measure the memory of labs at the configured interval, until the task is cancelled."""
        while self.limits:
            await asyncio.sleep(self._settings.memory_interval)
            await self.measure()

    async def prune(self, before: datetime) -> None:
        """Delete measurements before a time."""
        await self._store.prune(before)


def _shown(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
