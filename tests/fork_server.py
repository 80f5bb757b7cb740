"""Starts programs by forking a process that has already imported them, because imports take most of a start."""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import IO, Any, ClassVar, TypeAlias

PACKAGE = "neops_remote_lab"
CLIENT_MODULES = ("httpx", "httpcore", "psutil", "filelock", f"{PACKAGE}.client.lab_client", f"{PACKAGE}.models")
ROOT = Path(__file__).parents[1]
INTERPRETER_VARIABLES = ("PYTHON", "LC_", "LANG", "TZ", "LD_")
"""Prefixes of variables that the interpreter reads before the program runs."""
SEARCH_PATH = "PYTHONPATH"
"""The only one of them that a forked process applies."""
STREAMS = 3
END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MESSAGE_BYTES = 1 << 20

Stream: TypeAlias = int | IO[Any]
"""As `subprocess.Popen` has it: a constant of that module, a descriptor or a file."""


SERVER_MODULES = (
    *(f"{PACKAGE}.__main__", f"{PACKAGE}.cli.server", "alembic.command", "alembic.autogenerate", "alembic.script"),
    *("aiosqlite", "httpx", "logging.config", "sqlalchemy.dialects.sqlite.aiosqlite", "uvicorn.lifespan.on"),
    *("anyio._backends._asyncio", "uvicorn.loops.auto", "uvicorn.protocols.websockets.auto", "alembic.config"),
    *("uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl", "uvicorn.loops.uvloop", "stringprep"),
)


class Program(Enum):
    """A module that runs as a program, and the modules to import before that."""

    SERVER = (PACKAGE, SERVER_MODULES)
    SERVER_WITHOUT_FENCE = ("tests.chaos.server_without_fence", SERVER_MODULES)
    SERVER_WITHOUT_QUEUE_LOCK = ("tests.chaos.server_without_queue_lock", SERVER_MODULES)
    SERVER_WITHOUT_OWNERS = ("tests.chaos.server_without_owners", SERVER_MODULES)
    COMMAND = (
        PACKAGE,
        (
            f"{PACKAGE}.__main__",
            f"{PACKAGE}.cli.up",
            f"{PACKAGE}.cli.run",
            f"{PACKAGE}.client.forwards",
            *CLIENT_MODULES,
        ),
    )
    # Not the plugin itself: pytest rewrites the assertions of a plugin only if it was not imported before.
    PYTEST = ("pytest", ("_pytest.config", "_pytest.pytester", "tests.fork_workers", *CLIENT_MODULES))

    def __init__(self, module: str, *imported: tuple[str, ...]) -> None:
        self.module = module
        self.imported = [name for names in imported for name in names]

    def load(self) -> None:
        """Import what the program would import."""
        for name in self.imported:
            with suppress(ModuleNotFoundError):  # a package of an extra that is not installed
                importlib.import_module(name)
        if self is Program.PYTEST:
            from _pytest.config import default_plugins

            for name in default_plugins:
                importlib.import_module(f"_pytest.{name}")
        sys.modules.pop(f"{self.module}.__main__", None)  # each child runs it, as `python -m` does

    def run(self, arguments: list[str]) -> None:
        """Run the program in this process."""
        if self is Program.PYTEST:
            from tests.fork_workers import fork_workers

            fork_workers(arguments)
        sys.argv = [self.module, *arguments]
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


class ForkedProcess:
    """A child of a fork server, with the interface of `subprocess.Popen`."""

    def __init__(self, server: ForkChannel, pid: int, pipes: Mapping[int, IO[bytes]]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin, self.stdout, self.stderr = (pipes.get(number) for number in range(STREAMS))
        self._fork_server = server

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork_server.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.poll() is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                ends = select.poll()
                ends.register(descriptor, select.POLLIN)
                if not ends.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
            finally:
                os.close(descriptor)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """Read both outputs and wait for the end. Kills the process after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with ExitStack() as opened, ThreadPoolExecutor(2) as readers:
            pipes = [opened.enter_context(pipe or io.BytesIO()) for pipe in (self.stdout, self.stderr)]
            reading = [readers.submit(pipe.read) for pipe in pipes]
            try:
                output, errors = (read.result(deadline - time.monotonic()) for read in reading)
                self.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                self.kill()
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout) from None
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkChannel:
    """The client side of a connection to a fork server."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._lock = threading.Lock()

    def popen(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream,
        stderr: Stream,
        cwd: Path | None = None,
    ) -> ForkedProcess:
        """Start the program with these arguments; the options are those of `subprocess.Popen`."""
        pipes: dict[int, IO[bytes]] = {}
        request = {"arguments": list(arguments), "environment": dict(env), "directory": str(cwd or Path.cwd())}
        with ExitStack() as here:

            def descriptor(stream: Stream, number: int) -> int:
                if stream == subprocess.DEVNULL:
                    return here.enter_context(Path(os.devnull).open("r+b")).fileno()
                if stream == subprocess.PIPE:
                    reader, writer = os.pipe()
                    ours, other = (writer, reader) if number == 0 else (reader, writer)
                    here.callback(os.close, other)
                    pipes[number] = os.fdopen(ours, "rb" if number else "wb")
                    return other
                return stream if isinstance(stream, int) else stream.fileno()

            inputs, output = descriptor(stdin, 0), descriptor(stdout, 1)
            errors = output if stderr == subprocess.STDOUT else descriptor(stderr, 2)
            pid = self.ask(start=request, descriptors=(inputs, output, errors))
        return ForkedProcess(self, pid, pipes)

    def ask(self, descriptors: Sequence[int] = (), **request: object) -> Any:
        """Send a request. Returns the answer of the process."""
        with self._lock:
            socket.send_fds(self.channel, [json.dumps(request).encode()], descriptors)
            return json.loads(self.channel.recv(MESSAGE_BYTES))


class ForkServer:
    """A process that forks programs. Its children end with it."""

    of_this_run: ClassVar[Mapping[Program, ForkServer]] = {}

    def __init__(self, program: Program, launcher: Sequence[str] = ()) -> None:
        """`launcher` is a command prefix for the process, which is started at the first use."""
        self._program = program
        self._launcher = launcher
        self._environment = dict(os.environ)

    def can_fork(self, environment: Mapping[str, str]) -> bool:
        """Whether a forked process behaves as a new interpreter with this environment would."""
        ours = self._environment
        names = {name for name in {*environment, *ours} if name.startswith(INTERPRETER_VARIABLES)} - {SEARCH_PATH}
        return all(environment.get(name) == ours.get(name) for name in names)

    @property
    def forks(self) -> ForkChannel:
        """The connection to the process, which is started at the first use."""
        return self._process[0]

    def close(self) -> None:
        """End the process, if it was started."""
        if "_process" in vars(self):
            forks, process = self._process
            forks.channel.close()
            process.wait()

    @cached_property
    def _process(self) -> tuple[ForkChannel, subprocess.Popen[bytes]]:
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [*self._launcher, sys.executable, "-m", __name__, self._program.name]
        with other:
            return ForkChannel(ours), subprocess.Popen(command, cwd=ROOT, env=self._environment, stdin=other.fileno())


Process: TypeAlias = subprocess.Popen[bytes] | ForkedProcess


def popen(
    program: Program,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: Stream,
    stderr: Stream,
    cwd: Path | None = None,
    launcher: Sequence[str] = (),
    fork_server: ForkServer | None = None,
) -> Process:
    """Start a program with an empty standard input: forked if possible, otherwise with a new interpreter.

    Args:
        launcher: a command prefix for the interpreter.
        fork_server: used instead of that of the test run.

    The other options are those of `subprocess.Popen`.
    """
    fork_server = fork_server or ForkServer.of_this_run.get(program)
    if fork_server and fork_server.can_fork(env):
        return fork_server.forks.popen(arguments, env=env, stdout=stdout, stderr=stderr, cwd=cwd)
    command = [*launcher, sys.executable, "-m", program.module, *arguments]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd)


def main() -> None:
    """Serve requests on standard input until it is closed, then end all children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the tests too, which close this process
    program = Program[sys.argv[1]]
    program.load()
    gc.freeze()  # the children do not collect the objects that they share
    for pid in serve(socket.socket(fileno=os.dup(0)), program.run):
        os.kill(pid, signal.SIGTERM)


def serve(channel: socket.socket, run: Callable[[list[str]], None]) -> set[int]:
    """Serve requests to fork and to poll children until the channel is closed. Returns the ids of running children.

    In a child, it calls `run` with the arguments of the program and then returns an empty set.
    """
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, STREAMS)
        if not message:
            return children
        request = json.loads(message)
        answer: int | None = None
        if start := request.get("start"):
            answer = os.fork()
            if not answer:
                channel.close()
                _replace_state(descriptors, start["environment"], start["directory"])
                run(start["arguments"])
                return set()
            children.add(answer)
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            if pid:
                children.remove(pid)
                answer = os.waitstatus_to_exitcode(status)
        channel.send(json.dumps(answer).encode())


def _replace_state(descriptors: Sequence[int], environment: dict[str, str], directory: str) -> None:
    """Replace signal handlers, streams, directory and environment by those of a new process."""
    for end_signal in END_SIGNALS:
        signal.signal(end_signal, signal.default_int_handler if end_signal == signal.SIGINT else signal.SIG_DFL)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(directory)
    given = len(_search_path(os.environ))
    os.environ.clear()
    os.environ.update(environment)
    sys.path[: 1 + given] = [directory, *_search_path(environment)]
    tempfile.tempdir = None  # cached for another environment


def _search_path(environment: Mapping[str, str]) -> list[str]:
    return [entry for entry in environment.get(SEARCH_PATH, "").split(os.pathsep) if entry]


if __name__ == "__main__":
    main()
