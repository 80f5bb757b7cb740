"""Server processes that are forked from one that has imported the program already: most of a start is imports."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

PROGRAM = "neops_remote_lab"
LOADED = (
    *("alembic.command", "alembic.autogenerate", "alembic.script", "aiosqlite", "httpx", "logging.config"),
    *("sqlalchemy.dialects.sqlite.aiosqlite", "uvicorn.lifespan.on", "uvicorn.loops.auto"),
    *("uvicorn.protocols.websockets.auto", "uvicorn.protocols.http.h11_impl"),
)
"""What a server imports later than at its start."""
INTERPRETER = ("PYTHON", "LC_", "LANG", "TZ", "LD_")
"""How variables begin that count before the program runs."""


class Forked:
    """A child of the fork server, with what `subprocess.Popen` has of it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fork_server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork_server.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"{PROGRAM}, pid {self.pid}", timeout)
            time.sleep(0.005)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkServer:
    """The process that forks; its children end with it."""

    current: ClassVar[ForkServer | None] = None
    """That of this test run."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._one_order = threading.Lock()

    @classmethod
    def for_environment(cls, environment: Mapping[str, str]) -> ForkServer | None:
        """One whose servers are the same as if each had an interpreter of its own, if there is one."""
        ours = cls.current._environment if cls.current else {}
        names = {name for name in {*environment, *ours} if name.startswith(INTERPRETER)}
        return cls.current if all(environment.get(name) == ours.get(name) for name in names) else None

    def start(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Start a server whose output is appended to a file."""
        log.touch()  # whoever reads it need not wait for the child
        order = {"words": words, "environment": dict(environment), "log": str(log), "directory": str(Path.cwd())}
        return Forked(self, self.ask(start=order))

    def ask(self, **order: object) -> Any:
        """What the process says to an order."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders
        assert answers
        with self._one_order:
            orders.write(json.dumps(order).encode() + b"\n")
            orders.flush()
            return json.loads(answers.readline())

    def close(self) -> None:
        """End the process, if it has begun."""
        if "_process" in vars(self):
            self._process.communicate()

    @cached_property
    def _process(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        environment = {**self._environment, "PYTHONPATH": path}
        command = [sys.executable, "-m", __name__]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def main() -> None:
    """Fork and wait for children, as the lines of standard input say, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the tests, which close this
    _load()
    children: set[int] = set()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        answer: int | None = None
        if start := order.get("start"):
            answer = os.fork()
            if not answer:
                _serve(**start)
                return
            children.add(answer)
        else:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            if pid:
                children.remove(pid)
                answer = os.waitstatus_to_exitcode(status)
        os.write(1, json.dumps(answer).encode() + b"\n")
    for pid in children:
        os.kill(pid, signal.SIGTERM)


def _load() -> None:
    main_module = f"{PROGRAM}.__main__"
    for name in (main_module, f"{PROGRAM}.cli.server", *LOADED):
        importlib.import_module(name)
    del sys.modules[main_module]  # each child runs it, as `python -m` does
    gc.freeze()


def _serve(words: list[str], environment: dict[str, str], log: str, directory: str) -> None:
    """Be a server, until it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.unfreeze()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    _redirect(os.devnull, os.O_RDONLY, 0)
    _redirect(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1)
    os.dup2(1, 2)
    sys.argv = [PROGRAM, *words]
    runpy.run_module(PROGRAM, run_name="__main__", alter_sys=True)


def _redirect(path: str, flags: int, target: int) -> None:
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, target)
    os.close(opened)


if __name__ == "__main__":
    main()
