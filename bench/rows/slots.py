"""A host with several slots, and a host that starts labs in advance."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import LabServer, RealNetlab

from bench import host
from bench.host import NetlabLog
from bench.measure import Row, Sample, Target, require
from bench.rows.acquire import BARE, acquire, bare, check, end_session
from bench.rows.wholerun import Suite
from bench.servers import Bench, call, end, has_no_lab, joined, labs, real_host, sessions
from neops_remote_lab.core.settings import variable

LABS, NODES = 3, 3
RUNS, SLOTS = 8, 4
TEST_SECONDS = 0.25
"""Duration of each of the four lab tests of a run."""
NODE_MEMORY = str(128 << 20)
"""Expected memory of a router, low enough that no start waits for memory on a small machine. A router uses 40 MiB."""
START_TIMEOUT = 120.0
"""Maximum seconds until a lab that is started in advance is running."""


@dataclass
class Starts:
    """Seconds until the last lab was ready: one lab, several at once, and several in series."""

    alone: list[float] = field(default_factory=list)
    at_once: list[float] = field(default_factory=list)
    in_series: list[float] = field(default_factory=list)


def measure_real(bench: Bench) -> list[Row]:
    """Several labs on the real netlab of this machine."""
    name, case = "labs at once", f"{LABS} with {NODES} FRR routers each, last ready"
    if missing := host.real_netlab_problem():
        return [Row(name, case, "s", None, "one alone", note=f"skipped: {missing}")]
    starts = Starts()
    with real_host() as lab_host, bench.ours(lab_host, slots=str(LABS), node_memory=NODE_MEMORY) as server:
        _start(server, lab_host, 1, 1)  # not measured: the first lab reads its files from the disk
        for _ in range(bench.choose(1, 3)):
            starts.alone.append(_start(server, lab_host, 1, 1))
            starts.at_once.append(_start(server, lab_host, LABS, LABS))
            starts.in_series.append(_start(server, lab_host, LABS, 1))
        server.close()
        host.wait_clean(lab_host)
    at_once = Sample(starts.at_once)
    return [
        Row(name, case, "s", at_once, "one alone", Sample(starts.alone), Target(ratio=1.7)),
        Row(name, case, "s", at_once, "in series", Sample(starts.in_series), Target(ratio=0.6)),
    ]


def _start(server: LabServer, lab_host: RealNetlab, number: int, parallel: int) -> float:
    """Start `number` labs, `parallel` at a time. Returns the seconds; the labs are torn down again."""
    members = [joined(server) for _ in range(number)]
    topology = topology_text(NODES)
    with ThreadPoolExecutor(parallel) as threads:
        began = time.perf_counter()
        list(threads.map(lambda session: acquire(server, session, topology, NODES), members))
        took = time.perf_counter() - began
    require(len(lab_host.containers()) == number * NODES, "the routers do not run")
    for session in members:
        end(server, session)
    host.wait_clean(lab_host)
    wait_until(lambda: has_no_lab(server), 60)
    return took


def measure_runs(bench: Bench) -> list[Row]:
    """Several pytest runs that start at the same time, each with its own lab."""
    fake = host.install(bench.directory("host"))
    took: dict[int, list[float]] = {1: [], SLOTS: []}
    for _ in range(bench.choose(1, 3)):
        for slots, seconds in took.items():
            seconds.append(_runs(bench, fake, slots))
    host.require_order(fake)
    case = f"{RUNS} pytest runs, {SLOTS} slots, fake"
    return [Row("runs at once", case, "s", Sample(took[SLOTS]), "1 slot", Sample(took[1]), Target(ratio=0.5))]


def _runs(bench: Bench, fake: FakeNetlab, slots: int) -> float:
    suites: Sequence[Suite] = [
        Suite(bench.directory("suite"), by_hand=False, labs=["one"], test_seconds=TEST_SECONDS) for _ in range(RUNS)
    ]
    since = NetlabLog.now(fake)
    with (
        bench.ours(fake, slots=str(slots), node_memory=NODE_MEMORY) as server,
        ThreadPoolExecutor(RUNS) as threads,
    ):
        began = time.perf_counter()
        list(threads.map(lambda suite: suite.with_ours(server.url), suites))
        took = time.perf_counter() - began
        wait_until(lambda: sessions(server) == 0, 30, "a run left its session behind")
        host.wait_clean(fake)
    require(since.ups() == RUNS, f"netlab up was started {since.ups()} times instead of {RUNS}")
    return took


def measure_prestart(bench: Bench) -> list[Row]:
    """The acquire of a session whose lab was started while it waited: on the fake netlab, and on the real one."""
    rows = [_prestart(bench, host.install(bench.directory("host")), f"{NODES} nodes, fake", bench.choose(2, 5))]
    case = f"{NODES} FRR routers"
    if missing := host.real_netlab_problem():
        return [*rows, Row("prestart", case, "s", None, BARE, note=f"skipped: {missing}")]
    with real_host() as lab_host:
        return [*rows, _prestart(bench, lab_host, case, bench.choose(1, 3))]


def _prestart(bench: Bench, lab_host: FakeNetlab | RealNetlab, case: str, rounds: int) -> Row:
    took: list[float] = []
    alone: list[float] = []
    server = bench.our_server(lab_host, node_memory=NODE_MEMORY)
    server.environment[variable("prestart")] = "true"
    with bench.several([server]):
        for _ in range(rounds):
            alone.append(bare(bench, lab_host, topology_text(NODES)))
            took.append(_prestarted(server, lab_host))
        server.close()
        host.wait_clean(lab_host)
    return Row("prestart", case, "s", Sample(took), BARE, Sample(alone), Target(ratio=0.05))


def _prestarted(server: LabServer, lab_host: FakeNetlab | RealNetlab) -> float:
    """Seconds of an acquire whose lab was started while its session waited."""
    topology = topology_text(NODES)
    holder, waiter = joined(server), joined(server)
    acquire(server, holder, topology_text(1), 1)
    check(server, waiter, topology, NODES)
    wait_until(lambda: labs(server)["running"] == 2, START_TIMEOUT, "the lab was not started in advance")
    end(server, holder)
    place = call(server, "GET", f"/session/{waiter}?wait=30", 200, waiter)
    require(place["status"] == "active", f"the waiting session was not made active: {place}")
    took = acquire(server, waiter, topology, NODES, runs=True)
    end_session(server, waiter, lab_host)
    return took
