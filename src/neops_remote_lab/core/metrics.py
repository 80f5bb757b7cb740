"""What a monitoring system may want to know, in Prometheus' terms."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from neops_remote_lab.core.codes import EndCode

PREFIX: Final = "neops_remote_lab"
LAB_STATES: Final = ("none", "starting", "running", "stopping")
_SECONDS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)

Outcome = Literal["up", "rejected", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand at one moment."""

    waiting: int
    active: int
    lab_state: str
    references: int
    quarantined: bool
    log_bytes: int


class Metrics:
    """Counts what happens. A registry of its own, so that two applications in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._joined = Counter(f"{PREFIX}_sessions_joined", "Sessions that joined the queue", registry=self.registry)
        self._ended = Counter(f"{PREFIX}_sessions_ended", "Sessions that ended", ["reason"], registry=self.registry)
        self._wait = self._histogram("queue_wait_seconds", "From joining to being active")
        self._hold = self._histogram("hold_seconds", "From being active to the end of the session")
        self._start = self._histogram("lab_start_seconds", "From the start of a lab to its devices", "outcome")
        self._teardown = self._histogram("lab_teardown_seconds", "From the start of a teardown to its proof")

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, registry=self.registry, buckets=_SECONDS)

    def joined(self) -> None:
        """A session joined."""
        self._joined.inc()

    def became_active(self, waited: float) -> None:
        """A session became active after so many seconds."""
        self._wait.observe(waited)

    def ended(self, code: EndCode, held: float | None) -> None:
        """A session ended; `held` are the seconds for which it was active, if it was."""
        self._ended.labels(code).inc()
        if held is not None:
            self._hold.observe(held)

    def lab_started(self, seconds: float, outcome: Outcome) -> None:
        """A start came to its end, one way or another."""
        self._start.labels(outcome).observe(seconds)

    def lab_torn_down(self, seconds: float) -> None:
        """A teardown came to its end."""
        self._teardown.observe(seconds)


class StateCollector(Collector):
    """Asks for the state of things when it is scraped."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        """The gauges."""
        now = self._look()
        sessions = GaugeMetricFamily(f"{PREFIX}_sessions", "Live sessions", labels=["state"])
        sessions.add_metric(["waiting"], now.waiting)
        sessions.add_metric(["active"], now.active)
        lab = GaugeMetricFamily(f"{PREFIX}_lab_state", "1 for the state that the lab is in", labels=["state"])
        for state in LAB_STATES:
            lab.add_metric([state], float(now.lab_state == state))
        yield sessions
        yield lab
        yield GaugeMetricFamily(f"{PREFIX}_lab_references", "Acquires not yet released", value=now.references)
        yield GaugeMetricFamily(f"{PREFIX}_quarantined", "1 while nobody is made active", value=float(now.quarantined))
        yield GaugeMetricFamily(f"{PREFIX}_database_wal_bytes", "Write-ahead log of the database", value=now.log_bytes)
