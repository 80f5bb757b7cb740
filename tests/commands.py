"""Runs the command line as a user does, with a separate state directory."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import neops_remote_lab
from neops_remote_lab.client import keeper
from neops_remote_lab.client.state import KeptSession, StateDirectory
from tests.fakes import topology_text, wait_until
from tests.fork_server import Program, popen

TIMEOUT = 60.0


@dataclass
class Shell:
    """Runs `neops-remote-lab`, as users of a lab host do."""

    url: str
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        package = str(Path(neops_remote_lab.__path__[0]).parent)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("REMOTE_LAB_", "ANSIBLE_"))}
        self.environment = {
            **own,
            "PYTHONPATH": package,
            "XDG_STATE_HOME": str(self.directory / "state"),
            "TMPDIR": str(self.directory),
            "REMOTE_LAB_URL": self.url,
            **self.environment,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "neops_remote_lab", *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = popen(
            Program.COMMAND,
            arguments,
            cwd=self.directory,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.wait(), output.decode(), errors.decode())

    def do(self, *arguments: str, **environment: str) -> str:
        """Run a command that must succeed. Returns its standard output."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, f"{arguments}: {done.returncode}: {done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Start a command, and kill it at the end of the context if it still runs."""
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def terminal(self, *arguments: str) -> Iterator[Terminal]:
        """Start a command on a pseudo-terminal, which is closed at the end of the context."""
        pid, descriptor = pty.fork()
        if not pid:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
            os.chdir(self.directory)
            words = self.command(*arguments)
            os.execve(words[0], words, self.environment)  # noqa: S606 - a program of ours, without a shell
        terminal = Terminal(pid, descriptor)
        try:
            yield terminal
        finally:
            terminal.close()

    def topology(self, name: str = "ospf.yml", nodes: int = 2, **knobs: Any) -> str:
        """Write a topology file. Returns its name."""
        (self.directory / name).write_text(topology_text(nodes, **knobs), encoding="utf-8")
        return name

    @property
    def state(self) -> StateDirectory:
        return StateDirectory(self.directory / "state" / "neops-remote-lab" / "sessions")

    def kept(self, name: str = "default") -> KeptSession:
        """The saved session of a name."""
        found = self.state.find(self.url, name)
        assert found is not None
        return found

    def close(self) -> None:
        """Stop the background processes of sessions, which a failed test leaves running."""
        for kept in self.state:
            keeper.stop(kept)


@dataclass
class Terminal:
    """The controlling end of a pseudo-terminal on which a command runs."""

    pid: int
    descriptor: int
    shown: str = ""
    status: int | None = None

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, text: str) -> None:
        """Read until the command has printed a text."""
        wait_until(lambda: self._read() and text in self.shown, TIMEOUT, f"no {text!r} in {self.shown!r}")

    def finish(self) -> int:
        """Read to the end. Returns the exit status of the command."""
        wait_until(lambda: not self._read(), TIMEOUT, self.shown)
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def close(self) -> None:
        os.close(self.descriptor)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _read(self) -> bool:
        """Read the available output. Returns False at its end."""
        if not select.select([self.descriptor], [], [], 0.05)[0]:
            return True
        try:
            piece = os.read(self.descriptor, 4096)
        except OSError:  # the other end is closed
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)


def words_of(pid: int) -> Sequence[str]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def environment_of(text: str) -> Mapping[str, str]:
    """The variables in the output of `env`."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
