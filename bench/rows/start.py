"""The time from the start of the server process until `/healthz` and until `/readyz` succeed."""

import http.client
import time
from contextlib import closing

from bench.measure import PEER, BenchError, Row, Sample, Target
from bench.servers import NEVER, Bench, Server, call, fill

SESSIONS = 50_000
NOTE = "includes one netlab create, which checks the host's defaults"


def measure(bench: Bench) -> list[Row]:
    """Measure the start with an empty and with a long queue, compared with the peer."""
    took: dict[str, list[float]] = {"empty": [], "peer": [], "many": [], "ready": []}
    full = bench.our_server(waiting_timeout=NEVER, active_timeout=NEVER)
    fill(full.database_url, SESSIONS - 1)
    for _ in range(bench.choose(3, 15)):
        took["empty"].append(_start(bench.our_server(), "/healthz", 204))
        if peer := bench.peer_server():
            took["peer"].append(_start(peer, "/healthz", 204))
        took["many"].append(_start(full, "/healthz", 204, SESSIONS))
        took["ready"].append(_start(bench.our_server(), "/readyz", 200))
    empty, many, ready = Sample(took["empty"]), Sample(took["many"]), Sample(took["ready"])
    peer_times = Sample(took["peer"]) if took["peer"] else None
    against_empty = Target(excess=1)
    return [
        Row("start", "empty database", "s", empty, PEER, peer_times, Target(ratio=1.0), note=bench.no_peer),
        Row("start", f"{SESSIONS} sessions", "s", many, "empty database", empty, against_empty),
        Row("start", "until a lab can start", "s", ready, "empty database", empty, Target(), note=NOTE),
    ]


def _start(server: Server, path: str, status: int, expected: int = 0) -> float:
    began = time.perf_counter()
    try:
        server.launch()
        while _status(server.port, path) != status:
            if time.perf_counter() - began > 60:
                raise BenchError(f"{path} was not {status} within 60 s")
            time.sleep(0.005)
        took = time.perf_counter() - began
        found = call(server, "GET", "/debug/health", 200)["sessions"]
        if found != expected:
            raise BenchError(f"the server came up with {found} sessions instead of {expected}")
    finally:
        server.close()
    return took


def _status(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
