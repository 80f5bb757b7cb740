"""The time from the end of a session until the constructor of the next client returns."""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import wait_until

import bench.waiter
from bench.measure import PEER, BenchError, Row, Sample, Target, require
from bench.servers import Bench, Server, call, end, guarded, joined, sessions

PAIRS = 5
SPREAD = 5.0
"""Seconds over which the ends of sessions are spread; longer than the interval between polls of any client."""


class Waiter:
    """A process with a `RemoteLabClient` that joins the queue on command."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            if line.startswith("@"):
                self._lines.put(line[1:].strip())

    def send(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def expect(self, word: str, timeout: float = 60) -> str:
        """Wait for a line with this keyword. Returns the text after it."""
        try:
            found, _, rest = self._lines.get(timeout=timeout).partition(" ")
        except queue.Empty:
            raise BenchError(f"a waiting client did not print {word!r} within {timeout:g} s") from None
        require(found == word, f"a waiting client printed {found!r} instead of {word!r}")
        return rest


@contextmanager
def waiting_client(command: list[str], server: Server) -> Iterator[Waiter]:
    """Start `bench/waiter.py` with the Python of `command`."""
    process = subprocess.Popen(
        guarded([*command, str(Path(bench.waiter.__file__)), server.url]),
        env=os.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=server.root,
    )
    try:
        yield Waiter(process)
    finally:
        process.terminate()
        process.wait(10)
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()


@dataclass(frozen=True)
class Pair:
    """A server and its waiting client."""

    server: Server
    client: Waiter


def measure(bench: Bench) -> list[Row]:
    """Measure several pairs of server and client at the same time; pairs of the two versions take turns.

    A client of the peer polls at intervals, so the session ends at a different point of the interval in each round.
    Most of a round is waiting for that point, so several pairs cost little more than one.
    """
    turns = bench.choose(3, 10)
    took: dict[str, list[float]] = {"ours": [], "peer": []}
    ours: list[Server] = [bench.our_server() for _ in range(PAIRS)]
    theirs: list[Server] = [server for _ in range(PAIRS) if (server := bench.peer_server())]
    with bench.several([*ours, *theirs]), ExitStack() as stack, ThreadPoolExecutor(PAIRS) as pool:
        pairs = {"ours": [Pair(one, stack.enter_context(waiting_client([sys.executable], one))) for one in ours]}
        if bench.peer:
            command = [bench.peer.python, "-I"]
            pairs["peer"] = [Pair(one, stack.enter_context(waiting_client(command, one))) for one in theirs]
        for turn in range(turns):
            for name, some in pairs.items():
                numbers = range(turn * PAIRS, (turn + 1) * PAIRS)
                took[name] += pool.map(_hand_over, some, numbers)
    peer = Sample(took["peer"]) if took["peer"] else None
    note = bench.no_peer or f"{turns * PAIRS} rounds"
    target = Target(ratio=1 / 50, ceiling=50)
    return [Row("hand-over", "DELETE to constructor", "ms", Sample(took["ours"]), PEER, peer, target, note=note)]


def _hand_over(pair: Pair, number: int) -> float:
    """Run one round. Returns the milliseconds of the hand-over."""
    server, client = pair.server, pair.client
    holder = joined(server)
    place = call(server, "GET", f"/session/{holder}", 200)
    require(place["position"] == 0, f"the holder is not active: {place}")
    client.send("go")
    wait_until(lambda: sessions(server) == 2, 30, "the client did not join")
    time.sleep(0.2 + SPREAD * (0.618 * number % 1))
    began = time.monotonic()
    end(server, holder)
    active = float(client.expect("active"))
    require(active > began, "a client was active before the holder's session ended")
    client.send("close")
    client.expect("closed")
    wait_until(lambda: sessions(server) == 0, 30, "the client's session did not end")
    return 1000 * (active - began)
