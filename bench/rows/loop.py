"""The duration of a status call during a large upload and a long acquire."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import NamedTuple

from tests.fakes import topology_text
from tests.server import LabServer

from bench import host, load
from bench.load import Connection, request
from bench.measure import BenchError, Row, Sample, Target, require
from bench.servers import Bench, joined

EXTRA = 64 << 20
FILES = 16
PACE = 0.01
"""Seconds between two status calls: few enough to leave the load generator idle, many enough for a p99."""
BOUNDARY = "a-boundary-that-no-file-holds"


class Acquired(NamedTuple):
    """Times of an acquire in seconds of `time.perf_counter`: its begin, the end of the upload, the response."""

    began: float
    sent: float
    answered: float


class Probe(NamedTuple):
    """One status call: when it was sent, and the seconds that it took."""

    sent: float
    took: float


def measure(bench: Bench) -> list[Row]:
    """Compare status calls during an acquire with those of the idle server."""
    seconds = bench.choose(6, 30)
    fake = host.install(bench.directory("host"), start_seconds=seconds - 3)
    since = host.NetlabLog.now(fake)
    with bench.ours(fake) as server, ThreadPoolExecutor(1) as pool:
        session, waiting = joined(server), joined(server)

        async def work() -> tuple[list[Probe], list[Probe], Acquired]:
            idle = await _probe(server, waiting, seconds / 2)
            acquire = pool.submit(_acquire, server, session)
            busy = await _probe(server, waiting, seconds + 60, acquire)
            idle += await _probe(server, waiting, seconds / 2)
            return idle, busy, acquire.result()

        idle, busy, acquired = load.run(work, 3 * seconds + 90)
    require(since.ups() == 1, "no acquire was seen by netlab")
    length = acquired.answered - acquired.began
    require(length > 0.8 * seconds, f"the acquire took {length:.1f} s instead of {seconds}")
    upload = _milliseconds([probe for probe in busy if probe.sent < acquired.sent])
    note = f"during the upload of {acquired.sent - acquired.began:.2g} s: p99 {upload.p99:.2g} ms"
    case = f"status in an acquire of {seconds} s, 64 MiB"
    target = Target(ratio=2, of="p99")
    return [Row("loop", case, "ms", _milliseconds(busy), "idle", _milliseconds(idle), target, note=note)]


def _milliseconds(probes: list[Probe]) -> Sample:
    return Sample([1000 * probe.took for probe in probes])


async def _probe(
    server: LabServer, session: str, seconds: float, until: "Future[Acquired] | None" = None
) -> list[Probe]:
    """Send status calls at a constant rate for `seconds`, or until `until` is done."""
    connection, asked = await Connection(server.port).open(), request("GET", f"/session/{session}", session)
    probes = []
    began = time.perf_counter()
    while (sent := time.perf_counter()) - began < seconds:
        if until is not None and until.done():
            break
        (await connection.call(asked)).expect(200)
        probes.append(Probe(sent, time.perf_counter() - sent))
        await asyncio.sleep(max(0.0, sent + PACE - time.perf_counter()))
    connection.close()
    return probes


def _acquire(server: LabServer, session: str) -> Acquired:
    """Upload a topology with extra files up to the server's limit, and wait for the lab."""
    parts = list(_parts())
    head = (
        f"POST /lab HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Session-ID: {session}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {sum(map(len, parts))}\r\n\r\n"
    )
    began = time.perf_counter()
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=120)) as connection:
        connection.sendall(head.encode())
        for part in parts:
            connection.sendall(part)
        sent = time.perf_counter()
        answer = bytearray()
        while chunk := connection.recv(1 << 16):
            answer += chunk
    answered = time.perf_counter()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"POST /lab was answered {bytes(answer[:500])!r}")
    devices = json.loads(answer.partition(b"\r\n\r\n")[2])["devices"]
    require(len(devices) == 3, f"the lab has {len(devices)} devices instead of 3")
    return Acquired(began, sent, answered)


def _parts() -> Iterator[bytes]:
    content = bytes(range(256)) * (EXTRA // FILES // 256)
    yield _part('name="topology"; filename="topology.yml"') + topology_text(3).encode()
    for number in range(FILES):
        yield b"\r\n" + _part(f'name="extra_files"; filename="extra-{number}.bin"')
        yield content
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def _part(disposition: str) -> bytes:
    kind = "Content-Type: application/octet-stream"
    return f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n{kind}\r\n\r\n".encode()
