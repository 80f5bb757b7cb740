"""What a monitoring system may want to know, in Prometheus' terms: which metrics there are, and the counting."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from neops_remote_lab.core.codes import EndCode, LiveLabState, ProxyOutcome, SessionState, StartObstacle, StartOutcome

PREFIX: Final = "neops_remote_lab_"
NO_LAB: Final = "none"
"""The state of a lab host without a lab."""
_SECONDS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)


@dataclass(frozen=True, slots=True)
class Family:
    """The definition of a metric, for Prometheus and for the documentation.

    Attributes:
        name: name without the prefix.
        labels: possible values by label.
    """

    type: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: Mapping[str, Iterable[str]] = field(default_factory=dict)

    def counter(self, registry: CollectorRegistry) -> Counter:
        """What counts, in a registry."""
        return Counter(PREFIX + self.name, self.help, [*self.labels], registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """What sorts seconds, in a registry."""
        return Histogram(PREFIX + self.name, self.help, [*self.labels], registry=registry, buckets=_SECONDS)

    def gauge(self, values: float | Mapping[str, float]) -> GaugeMetricFamily:
        """What is true at this moment: one value, or one for each value of the label."""
        if not isinstance(values, Mapping):
            return GaugeMetricFamily(PREFIX + self.name, self.help, value=values)
        return self.gauges(((label,), value) for label, value in values.items())

    def gauges(self, values: Iterable[tuple[Sequence[str], float]]) -> GaugeMetricFamily:
        """As `gauge`, with the values of all labels for each value."""
        gauge = GaugeMetricFamily(PREFIX + self.name, self.help, labels=[*self.labels])
        for labels, value in values:
            gauge.add_metric(labels, value)
        return gauge


SESSIONS_JOINED: Final = Family("counter", "sessions_joined_total", "Sessions that joined the queue")
SESSIONS_ENDED: Final = Family("counter", "sessions_ended_total", "Sessions that ended", {"reason": EndCode})
QUEUE_WAIT: Final = Family("histogram", "queue_wait_seconds", "From joining to being active")
HOLD: Final = Family("histogram", "hold_seconds", "From being active to the end of the session")
LAB_START: Final = Family(
    "histogram", "lab_start_seconds", "From the start of a lab to its devices", {"outcome": StartOutcome}
)
LAB_TEARDOWN: Final = Family("histogram", "lab_teardown_seconds", "From the start of a teardown to its proof")
SESSIONS: Final = Family("gauge", "sessions", "Live sessions", {"state": SessionState})
LAB_STATE: Final = Family("gauge", "lab_state", "Slots by the state of their lab", {"state": (NO_LAB, *LiveLabState)})
SLOT_ACTIVE: Final = Family(
    "gauge", "slot_active", "1 while a session is active in the slot", {"host": ("--lab-host",), "slot": ("1", "…")}
)
LAB_REFERENCES: Final = Family("gauge", "lab_references", "Acquires not yet released")
LAB_MEMORY: Final = Family(
    "gauge", "lab_memory_bytes", "Memory of all labs at the latest measurement, on a host with several slots"
)
STARTS_WAITING: Final = Family(
    "gauge", "starts_waiting", "Starts that wait, by what they wait for", {"reason": StartObstacle}
)
CALLS_PASSED_ON: Final = Family(
    "counter",
    "calls_passed_on_total",
    "Calls on labs of other hosts, by the host that has the lab",
    {"host": ("a host of the queue",), "outcome": ProxyOutcome},
)
QUARANTINED: Final = Family("gauge", "quarantined", "1 while no session is admitted")
DATABASE_WAL: Final = Family("gauge", "database_wal_bytes", "Write-ahead log of the database")

FAMILIES: Final = (
    *(SESSIONS, SESSIONS_JOINED, SESSIONS_ENDED, QUEUE_WAIT, HOLD),
    *(SLOT_ACTIVE, LAB_STATE, LAB_REFERENCES, LAB_MEMORY, STARTS_WAITING, LAB_START, LAB_TEARDOWN),
    *(CALLS_PASSED_ON, QUARANTINED, DATABASE_WAL),
)
"""All metrics, for the documentation."""


class Metrics:
    """The metrics of one application. Each has its own registry, so that several can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._joined = SESSIONS_JOINED.counter(self.registry)
        self._ended = SESSIONS_ENDED.counter(self.registry)
        self._wait = QUEUE_WAIT.histogram(self.registry)
        self._hold = HOLD.histogram(self.registry)
        self._start = LAB_START.histogram(self.registry)
        self._teardown = LAB_TEARDOWN.histogram(self.registry)
        self._passed_on = CALLS_PASSED_ON.counter(self.registry)

    def joined(self) -> None:
        """A session joined."""
        self._joined.inc()

    def became_active(self, waited: float) -> None:
        """A session became active after waiting for `waited` seconds."""
        self._wait.observe(waited)

    def ended(self, code: EndCode, held: float | None) -> None:
        """A session ended; `held` are the seconds for which it was active, if it was."""
        self._ended.labels(code).inc()
        if held is not None:
            self._hold.observe(held)

    def lab_started(self, seconds: float, outcome: StartOutcome) -> None:
        """A start came to its end, one way or another."""
        self._start.labels(outcome).observe(seconds)

    def call_passed_on(self, host: str, outcome: ProxyOutcome) -> None:
        """A call on a lab of another host ended."""
        self._passed_on.labels(host, outcome).inc()

    def lab_torn_down(self, seconds: float) -> None:
        """A teardown came to its end."""
        self._teardown.observe(seconds)
