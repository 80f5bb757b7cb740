"""Commands and connections to real routers, compared with `docker exec` and direct TCP."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from tests.device_network import COUNT, ECHO, SERVICES, SOURCE
from tests.fakes import topology_text, wait_until
from tests.server import LabServer

from bench import host
from bench.measure import BenchError, Row, Sample, Target, require
from bench.probe import probing
from bench.servers import NEVER, Bench, call, end, form, has_no_lab, joined, real_host

COMMAND: Final = ("vtysh", "-c", "show ip route")
EXTRA: Final = 5.0
"""Milliseconds that are subtracted from a command before it is compared with `docker exec`."""
DOCKER_EXEC, DIRECT, IDLE = "docker exec", "direct TCP", "idle"
AT_ONCE: Final = 100
STALL: Final = 100.0
"""Maximum milliseconds of a stall of the event loop."""
PIECE: Final = 128 << 10
FINAL_BINARY: Final = 0x82
MASKED, TWO_BYTES, EIGHT_BYTES = 0x80, 126, 127


def measure(bench: Bench) -> list[Row]:
    """Measure commands, connections and stalls with one FRR router."""
    if missing := host.real_netlab_problem():
        note = f"skipped: {missing}"
        return [Row("exec", "vtysh, an FRR router", "ms", None, DOCKER_EXEC, note=note)]
    with real_host() as lab_host:
        with bench.ours(lab_host, active_timeout=NEVER, waiting_timeout=NEVER) as server:
            session, waiting = joined(server), joined(server)
            body, kind = form(topology_text(1))
            devices = call(server, "POST", "/lab", 200, session, body=body, content_type=kind, timeout=300)["devices"]
            raw = devices[0]["raw"]
            with _services(raw["hostname"]):
                rows = [
                    _exec(bench, server, session, raw["hostname"]),
                    _opening(bench, server, session, raw["mgmt"]["ipv4"]),
                    *_throughput(bench, server, session, raw["mgmt"]["ipv4"]),
                    *_at_once(server, session, waiting),
                ]
            end(server, session)
            wait_until(lambda: has_no_lab(server), 60)
        host.wait_clean(lab_host)
    return rows


@contextmanager
def _services(container: str) -> Iterator[None]:
    """Start the services of `tests.device_network` in the router."""
    command = ["ip", "netns", "exec", container, sys.executable, "-I", "-c", SERVICES]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            require(process.stdout and process.stdout.readline() == b"ready\n", "nothing listens in the router")
            yield
        finally:
            process.kill()


def _exec(bench: Bench, server: LabServer, session: str, container: str) -> Row:
    body, docker = json.dumps({"command": COMMAND}).encode(), str(shutil.which("docker"))

    def ours() -> None:
        answer = call(server, "POST", "/lab/devices/r1/exec", 200, session, body=body)
        require(answer["exit_status"] == 0 and "Codes:" in answer["stdout"], f"the command failed: {answer}")

    def theirs() -> None:
        subprocess.run([docker, "exec", container, *COMMAND], check=True, capture_output=True)

    took, reference = _in_turn(bench.choose(20, 60), ours, theirs)
    return Row(
        "exec",
        "vtysh, an FRR router",
        "ms",
        took,
        DOCKER_EXEC,
        reference,
        Target(ratio=1.5),
        given_ratio=(took.median - EXTRA) / reference.median,
        note=f"ratio without {EXTRA:g} ms",
    )


def _opening(bench: Bench, server: LabServer, session: str, address: str) -> Row:
    def ours() -> None:
        _open(server, session, ECHO).close()

    def theirs() -> None:
        socket.create_connection((address, ECHO)).close()

    took, reference = _in_turn(bench.choose(100, 500), ours, theirs)
    return Row("connection", "opening one", "ms", took, DIRECT, reference, Target(ceiling=10))


def _in_turn(rounds: int, *works: Callable[[], None]) -> list[Sample]:
    """Run two kinds of work alternately. Returns the milliseconds of each."""
    took: list[list[float]] = [[] for _ in works]
    for turn in range(rounds + 1):
        for index in range(len(works)) if turn % 2 == 0 else reversed(range(len(works))):
            began = time.perf_counter()
            works[index]()
            if turn:  # not measured: the first call queries Docker and reads programs from the disk
                took[index].append(1000 * (time.perf_counter() - began))
    return [Sample(found) for found in took]


def _open(server: LabServer, session: str, port: int) -> socket.socket:
    """Open a WebSocket to a port of the router. The caller reads and writes frames on the socket."""
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.sendall(
        f"GET /lab/devices/r1/tcp/{port} HTTP/1.1\r\nHost: x\r\nX-Session-ID: {session}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    answer = peer.recv(4096)
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise BenchError(f"a connection was answered {answer!r}")
    return peer


def _frame(data: bytes) -> bytes:
    """A binary frame of a client, masked with zeros."""
    if len(data) < TWO_BYTES:
        size = bytes([MASKED | len(data)])
    elif len(data) < 1 << 16:
        size = bytes([MASKED | TWO_BYTES]) + len(data).to_bytes(2)
    else:
        size = bytes([MASKED | EIGHT_BYTES]) + len(data).to_bytes(8)
    return bytes([FINAL_BINARY]) + size + bytes(4) + data


def _throughput(bench: Bench, server: LabServer, session: str, address: str) -> list[Row]:
    seconds, slices = bench.choose((0.4, 7), (1.0, 9))
    ways: dict[str, Callable[[bool], float]] = {
        "from the router": lambda direct: _rate_from(_connection(server, session, SOURCE, address, direct), seconds),
        "to the router": lambda direct: _rate_to(
            _connection(server, session, COUNT, address, direct),
            bytes(PIECE) if direct else _frame(bytes(PIECE)),
            seconds,
        ),
    }
    rows = []
    for way, rate in ways.items():
        rates: tuple[list[float], list[float]] = ([], [])
        for turn in range(slices):
            for direct in (False, True) if turn % 2 == 0 else (True, False):
                rates[direct].append(rate(direct))
        target = Target(ratio=0.3, sense="≥")
        rows.append(
            Row("throughput", f"a connection, {way}", "MB/s", Sample(rates[False]), DIRECT, Sample(rates[True]), target)
        )
    return rows


def _connection(server: LabServer, session: str, port: int, address: str, direct: bool) -> socket.socket:
    return socket.create_connection((address, port), timeout=30) if direct else _open(server, session, port)


def _rate_from(peer: socket.socket, seconds: float) -> float:
    """Received megabytes per second. The headers of frames are counted, because they are small."""
    into, received, began = bytearray(1 << 18), 0, time.perf_counter()
    with closing(peer):
        while (took := time.perf_counter() - began) < seconds:
            size = peer.recv_into(into)
            require(size, "the stream ended")
            received += size
    return received / took / 1e6


def _rate_to(peer: socket.socket, message: bytes, seconds: float) -> float:
    """Sent megabytes per second, including the buffers of the kernel."""
    sent, began = 0, time.perf_counter()
    with closing(peer):
        while (took := time.perf_counter() - began) < seconds:
            peer.sendall(message)
            sent += len(message)
    return sent / took / 1e6


def _at_once(server: LabServer, session: str, waiting: str) -> list[Row]:
    rows = []
    with probing(server.port, waiting) as probe:
        cases: dict[str, Callable[[], None]] = {
            f"{AT_ONCE} connections opened at once": lambda: _open_and_echo(server, session),
            f"{AT_ONCE} connections, each as fast as it goes": lambda: _read_all(server, session, 3.0),
        }
        for case, work in cases.items():
            idle, _ = probe.during(lambda: time.sleep(1))
            worst, _ = probe.during(work)
            stall = Sample([1000 * max(0.0, worst - idle)])
            rows.append(Row("stall", case, "ms", stall, IDLE, Sample([1000 * idle]), Target(ceiling=STALL)))
    return rows


def _open_all(server: LabServer, session: str, port: int, ends: ExitStack) -> Sequence[socket.socket]:
    return [ends.enter_context(closing(_open(server, session, port))) for _ in range(AT_ONCE)]


def _open_and_echo(server: LabServer, session: str) -> None:
    with ExitStack() as ends:
        peers = _open_all(server, session, ECHO, ends)
        for _ in range(20):
            for peer in peers:
                peer.sendall(_frame(b"x" * 100))
            for peer in peers:
                require(len(peer.recv(4096)) == 102, "the router did not send the data back")


def _read_all(server: LabServer, session: str, seconds: float) -> None:
    with ExitStack() as ends:
        peers = _open_all(server, session, SOURCE, ends)
        into, began = bytearray(1 << 18), time.perf_counter()
        while time.perf_counter() - began < seconds:
            for peer in peers:
                require(peer.recv_into(into), "a stream ended")
