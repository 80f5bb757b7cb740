"""The duration of an acquire, cold and after a check of its topology, compared with `netlab up` alone."""

import time
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import LabServer, RealNetlab

from bench import host
from bench.host import NetlabLog
from bench.measure import Row, Sample, Target, require
from bench.servers import Bench, call, end, form, has_no_lab, joined, real_host

SIZES = (1, 3, 10, 30)
REAL_SIZE = 3
MORE_REAL_SIZES = (10, 30)
"""Sizes without a target, because the benefit of preparation depends on how fast the machine starts routers."""
COLD, PREPARED = Target(ratio=1.0), Target(ratio=0.8)
NO_TARGETS = Target(), Target()
BARE = "bare netlab up"


@dataclass
class Times:
    """Seconds until a topology was running, by kind of start, and the number of netlab processes until the response."""

    bare: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    prepared: list[float] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)


def measure(bench: Bench) -> list[Row]:
    """Measure on the fake netlab."""
    rounds = bench.choose(1, 3)
    fake = host.install(bench.directory("host"))
    times = {nodes: Times() for nodes in SIZES}
    with bench.ours(fake) as server:
        bare(bench, fake, topology_text(1))  # not measured: the first netlab reads its files from the disk
        for turn in range(rounds):
            for place, (nodes, into) in enumerate(times.items()):
                _one_of_each(bench, server, fake, nodes, into, bare_first=(turn + place) % 2 == 0)
    host.require_order(fake)
    rows = [
        row
        for nodes, found in times.items()
        for row in _rows(f"{nodes} node{'s' if nodes > 1 else ''}, fake", found, nodes)
    ]
    return sorted([*rows, _processes(times)], key=lambda row: row.name)


def measure_real(bench: Bench) -> list[Row]:
    """The same on the real netlab of this machine."""
    if missing := host.real_netlab_problem():
        return [Row("acquire, cold", f"{REAL_SIZE} FRR routers", "s", None, BARE, note=f"skipped: {missing}")]
    sizes = {REAL_SIZE: bench.choose(1, 4), **bench.choose({}, dict.fromkeys(MORE_REAL_SIZES, 1))}
    times = {nodes: Times() for nodes in sizes}
    with real_host() as lab_host, bench.ours(lab_host) as server:
        bare(bench, lab_host, topology_text(REAL_SIZE))
        for nodes, rounds in sizes.items():
            for turn in range(rounds):
                _one_of_each(bench, server, lab_host, nodes, times[nodes], bare_first=turn % 2 == 0)
        server.close()
        host.wait_clean(lab_host)
    rows = [
        row
        for nodes, found in times.items()
        for row in _rows(f"{nodes} FRR routers", found, targets=(COLD, PREPARED) if nodes == REAL_SIZE else NO_TARGETS)
    ]
    return sorted(rows, key=lambda row: row.name)


def _one_of_each(
    bench: Bench, server: LabServer, lab_host: FakeNetlab | RealNetlab, nodes: int, into: Times, *, bare_first: bool
) -> None:
    topology = topology_text(nodes)
    if bare_first:
        into.bare.append(bare(bench, lab_host, topology))
    session = joined(server)
    took, started = _acquire(server, lab_host, session, topology, nodes)
    into.cold.append(took)
    into.processes += [] if started is None else [started]
    second = joined(server)
    # The check runs while the first session still holds the lab, as it would in a queue.
    check(server, second, topology, nodes)
    end_session(server, session, lab_host)
    into.prepared.append(_acquire(server, lab_host, second, topology, nodes)[0])
    end_session(server, second, lab_host)
    if not bare_first:
        into.bare.append(bare(bench, lab_host, topology))


def end_session(server: LabServer, session: str, lab_host: FakeNetlab | RealNetlab) -> None:
    """End a session, and wait until its lab is removed and the server has no further work."""
    end(server, session)
    host.wait_clean(lab_host)
    wait_until(lambda: has_no_lab(server), 60)


def bare(bench: Bench, lab_host: FakeNetlab | RealNetlab, topology: str) -> float:
    """Run `netlab up` without a server. Returns its seconds; the lab is torn down again."""
    directory = bench.directory("bare") / "topology"
    directory.mkdir()
    (directory / "topology.yml").write_text(topology)
    took = host.netlab(lab_host, directory, "up", "topology.yml")
    host.netlab(lab_host, directory, "down", "--cleanup")
    host.wait_clean(lab_host)
    return took


def _acquire(
    server: LabServer, lab_host: FakeNetlab | RealNetlab, session: str, topology: str, nodes: int
) -> tuple[float, int | None]:
    since = NetlabLog.now(lab_host) if isinstance(lab_host, FakeNetlab) else None
    took = acquire(server, session, topology, nodes)
    if since is None:
        require(len(lab_host.containers()) == nodes, "the routers do not run")
        return took, None
    require(since.ups() == 1, f"netlab up was started {since.ups()} times")
    return took, len(since.started())


def acquire(server: LabServer, session: str, topology: str, nodes: int, *, runs: bool = False) -> float:
    """Seconds of `POST /lab`. The lab must be running before if `runs` is true, and must not be otherwise."""
    body, kind = form(topology)
    began = time.perf_counter()
    answer: dict[str, Any] = call(server, "POST", "/lab", 200, session, body=body, content_type=kind, timeout=300)
    took = time.perf_counter() - began
    names = {device["name"] for device in answer["devices"] if device["raw"]["mgmt"]["ipv4"]}
    require(names == {f"r{number}" for number in range(1, nodes + 1)}, f"the devices are {sorted(names)}")
    require(answer["reused"] == runs, f"the lab was {'started' if runs else 'reused'}")
    return took


def check(server: LabServer, session: str, topology: str, nodes: int) -> None:
    """Check a topology for a waiting session, which prepares its lab."""
    body, kind = form(topology)
    checked = call(server, "POST", "/topology/check", 200, session, body=body, content_type=kind)
    require(checked["nodes"] == nodes, f"the check counted {checked} instead of {nodes} nodes")


def _rows(
    case: str, found: Times, nodes: float | None = None, targets: tuple[Target, Target] = (COLD, PREPARED)
) -> list[Row]:
    bare = Sample(found.bare)
    chart = "" if nodes is None else "acquire"
    return [
        Row(f"acquire, {name}", case, "s", Sample(took), BARE, bare, target, chart=chart, line=name, x=nodes)
        for name, took, target in zip(("cold", "prepared"), (found.cold, found.prepared), targets, strict=True)
    ]


def _processes(times: dict[int, Times]) -> Row:
    """The number of netlab processes until the response, for the largest and the smallest topology."""
    few, many = times[min(times)].processes, times[max(times)].processes
    note = ", ".join(f"{max(found.processes)} for {nodes}" for nodes, found in times.items())
    case = f"netlab processes, {max(times)} nodes"
    return Row("acquire, cold", case, "", Sample(many), "1 node", Sample(few), Target(ratio=1.0), note=note)
