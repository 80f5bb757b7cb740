"""Prometheus gauges that are read from the services at each scrape."""

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from neops_remote_lab.core.codes import SessionState, StartObstacle
from neops_remote_lab.core.metrics import (
    DATABASE_WAL,
    LAB_MEMORY,
    LAB_REFERENCES,
    LAB_STATE,
    NO_LAB,
    QUARANTINED,
    SESSIONS,
    SLOT_ACTIVE,
    STARTS_WAITING,
)
from neops_remote_lab.labs.admission import Admission
from neops_remote_lab.labs.slots import Slots
from neops_remote_lab.queue.service import SessionQueue
from neops_remote_lab.store.protocol import Database


class Gauges(Collector):
    """Reads the state of queue, labs and database."""

    def __init__(
        self, queue: SessionQueue, slots: Slots, admission: Admission, database: Database, lab_host: str
    ) -> None:
        self._queue = queue
        self._slots = slots
        self._admission = admission
        self._database = database
        self._lab_host = lab_host

    def collect(self) -> Iterable[Metric]:
        """All gauges with their current values."""
        waiting = self._queue.waiting
        states: Counter[str] = Counter(lab.state for lab in self._slots.labs)
        states[NO_LAB] = len(list(self._slots)) - states.total()
        yield SESSIONS.gauge({SessionState.WAITING: waiting, SessionState.ACTIVE: len(self._queue) - waiting})
        active = {session.slot for session in self._queue.active if session.host == self._lab_host}
        slots = range(1, self._queue.slots + 1)
        yield SLOT_ACTIVE.gauges(((self._lab_host, str(slot)), float(slot in active)) for slot in slots)
        yield LAB_STATE.gauge({each: float(states[each]) for each in LAB_STATE.labels["state"]})
        yield LAB_REFERENCES.gauge(self._slots.references)
        yield LAB_MEMORY.gauge(self._admission.used)
        waits = Counter(obstacle.code for obstacle in self._admission.waiting)
        yield STARTS_WAITING.gauge({code: float(waits[code]) for code in StartObstacle})
        yield QUARANTINED.gauge(float(self._queue.quarantined is not None))
        yield DATABASE_WAL.gauge(self._database.log_bytes)
