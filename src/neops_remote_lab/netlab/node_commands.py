"""Runs commands in the nodes of a lab with `docker exec`, and ends them inside the node.

When a `docker exec` process is killed, the command in the container continues. Each command therefore first prints its
pid and has a mark in its environment. Both are used to find and end the command with all processes that it started.
"""

import functools
import logging
import os
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final, NamedTuple

import psutil

from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.failures import failure
from neops_remote_lab.netlab.nodes import Node
from neops_remote_lab.netlab.process import INTERRUPT_POLL

logger = logging.getLogger(__name__)

MARK_VARIABLE: Final = "NEOPS_LAB_COMMAND"
"""Environment variable with the mark of a command in the node."""
PIECE_BYTES: Final = 64 * 1024
ANNOUNCEMENT_BYTES: Final = 64 * 1024
"""Maximum number of bytes of output before the announcement of the pid, such as warnings of the shell."""

_ANNOUNCE: Final = f'echo "${MARK_VARIABLE} $$" >&2; exec "$@"'
_END: Final = """\
mark=$1 group=${2:+-$2} rounds=$4
ours() {
  for file in $(grep -slF -- "$mark" /proc/[0-9]*/environ); do
    file=${file#/proc/}
    echo "${file%/environ}"
  done
}
left() { kill -s 0 -- $group 2>/dev/null || [ "$(ours)" ]; }
kill -s "$3" -- $group $(ours) 2>/dev/null
while left && [ "$rounds" -gt 0 ]; do
  sleep 0.1
  rounds=$((rounds - 1))
done
kill -s KILL -- $group $(ours) 2>/dev/null
exit 0
"""
"""Shell script that signals the processes with a mark and the process group of the command, and kills them later."""


class NoShell(FileNotFoundError):
    """The node has no `sh`, which is needed to run commands."""


class Completed(NamedTuple):
    """The result of a command."""

    exit_status: int
    """Exit status of the command; 128 plus the signal number if a signal ended it."""
    stdout: bytes
    stderr: bytes
    truncated: bool
    """Whether the output exceeded the limit and was cut."""


class NodeCommands:
    """Runs commands in nodes. All methods block."""

    def __init__(self, netlab: NetlabCommands, kill_grace: float) -> None:
        """`kill_grace`: seconds between the first signal and SIGKILL."""
        self._netlab = netlab
        self._kill_grace = kill_grace

    def execute(
        self,
        node: Node,
        words: Sequence[str],
        *,
        lab_id: str,
        stdin: bytes,
        timeout: float,
        most: int,
        interrupt: threading.Event,
    ) -> Completed:
        """Run a command in a node, without a shell, and wait for its end.

        Args:
            words: the command and its arguments; the first one does not begin with a hyphen.
            timeout: seconds after which the command is ended.
            most: maximum number of bytes kept of each output; the rest is dropped.
            interrupt: once set, ends the command.

        Raises:
            InterruptedError: `interrupt` was set.
            subprocess.TimeoutExpired: the command exceeded `timeout`.
            NoShell: the node has no shell.
            subprocess.CalledProcessError: Docker could not run the command; `stderr` says why.
            OSError: the Docker command cannot be started.
        """
        until = time.monotonic() + timeout
        if interrupt.is_set():
            raise InterruptedError("the command was stopped before it began")
        command = _Command(self._netlab, node, words, lab_id=lab_id, stdin=stdin, most=most)
        ended = False
        try:
            while not interrupt.is_set() and (left := until - time.monotonic()) > 0:
                if not command.goes_on(min(INTERRUPT_POLL, left)):
                    ended = True
                    return command.completed()
        finally:
            if not ended:
                self._end(command)
        if interrupt.is_set():
            raise InterruptedError("the command was stopped before its end")
        raise subprocess.TimeoutExpired(words[0], timeout)

    def _end(self, command: "_Command") -> None:
        command.wait_for_announcement(self._kill_grace)
        self.end_in_node(command.node, command.mark, command.announcement.process, signal.SIGTERM)
        command.close(self._kill_grace)

    def end_in_node(self, node: Node, mark: str, process: str, polite: signal.Signals) -> None:
        """End all processes with a mark, as root, and the process group of the command if its pid is known."""
        rounds = str(int(self._kill_grace * 10))
        arguments = [mark, process, polite.name.removeprefix("SIG"), rounds]
        try:
            self._netlab.docker(["exec", "--user", "0", node.container, "sh", "-c", _END, "sh", *arguments])
        except (subprocess.SubprocessError, OSError) as error:
            logger.warning("a command may still be running in container %.12s: %s", node.container, failure(error))


def docker_arguments(
    node: Node, words: Sequence[str], mark: str, *, options: Sequence[str] = (), before: str = ""
) -> list[str]:
    """Arguments of `docker` to run a command in a node. Docker parses no options after the container id.

    Args:
        options: further options for Docker.
        before: a shell command that runs first; it must never contain untrusted text.
    """
    marked = ["--env", f"{MARK_VARIABLE}={mark}"]
    script = f"{before}; {_ANNOUNCE}" if before else _ANNOUNCE
    return ["exec", "--interactive", *options, *marked, node.container, "sh", "-c", script, "sh", *words]


def new_mark() -> str:
    """A new unique mark for a command."""
    return secrets.token_hex(16)


class Announcement:
    """Finds the line with the command's pid in its output, and removes it."""

    def __init__(self, mark: str) -> None:
        self._mark = mark.encode()
        self._seen = bytearray()
        self.process = ""
        """The pid in the node; empty until it is known."""
        self._over = False

    def feed(self, data: bytes) -> bytes:
        """Process output (empty at the end). Returns the output without the announcement."""
        if self._over:
            return data
        self._seen += data
        before, found, rest = self._seen.partition(self._mark)
        line, whole, after = rest.partition(b"\n")
        if found and whole:
            self.process = line.decode(errors="replace").strip()
            before += after
        elif data and len(self._seen) < ANNOUNCEMENT_BYTES:
            return b""
        else:
            before = self._seen
        self._over = True
        return bytes(before)


class _Command:
    """A running command. Its streams are served during calls of `goes_on`."""

    def __init__(
        self, netlab: NetlabCommands, node: Node, words: Sequence[str], *, lab_id: str, stdin: bytes, most: int
    ) -> None:
        self.node = node
        self.mark = new_mark()
        self.announcement = Announcement(self.mark)
        self._most = most
        self._stdin = memoryview(stdin)
        self._printed = {"stdout": bytearray(), "stderr": bytearray()}
        self._truncated = False
        self._process: psutil.Popen = netlab.start_docker(docker_arguments(node, words, self.mark), lab_id=lab_id)
        self._streams = selectors.DefaultSelector()
        for name in self._printed:
            stream = getattr(self._process, name)
            self._streams.register(stream, selectors.EVENT_READ, functools.partial(self._read, stream, name))
        if stdin:
            os.set_blocking(self._process.stdin.fileno(), False)
            write = functools.partial(self._write, self._process.stdin)
            self._streams.register(self._process.stdin, selectors.EVENT_WRITE, write)
        else:
            self._process.stdin.close()

    def goes_on(self, seconds: float) -> bool:
        """Serve the streams for at most `seconds`. Returns whether the command is still running."""
        if not self._streams.get_map():
            with suppress(psutil.TimeoutExpired):
                self._process.wait(seconds)
            return self._process.poll() is None
        for key, _ in self._streams.select(seconds):
            key.data()
        return True

    def _write(self, stream: IO[bytes]) -> None:
        try:
            self._stdin = self._stdin[stream.write(self._stdin[:PIECE_BYTES]) or 0 :]
        except BrokenPipeError:  # the command has closed its standard input
            self._stdin = self._stdin[:0]
        if not self._stdin:
            self._close(stream)

    def _read(self, stream: IO[bytes], name: str) -> None:
        data = stream.read(PIECE_BYTES)
        if not data:
            self._close(stream)
        self._keep(name, self.announcement.feed(data) if name == "stderr" else data)

    def _keep(self, name: str, data: bytes) -> None:
        printed = self._printed[name]
        room = self._most - len(printed)
        printed += data[:room]
        self._truncated = self._truncated or len(data) > room

    def _close(self, stream: IO[bytes]) -> None:
        self._streams.unregister(stream)
        with suppress(BrokenPipeError):
            stream.close()

    def wait_for_announcement(self, seconds: float) -> None:
        """Wait until the pid in the node is known or the command has ended, at most `seconds`."""
        until = time.monotonic() + seconds
        while not self.announcement.process and self.goes_on(INTERRUPT_POLL) and time.monotonic() < until:
            pass

    def close(self, grace: float) -> None:
        """Wait at most `grace` seconds for the end of the `docker` process, then kill it."""
        until = time.monotonic() + grace
        while self.goes_on(INTERRUPT_POLL):
            if time.monotonic() >= until:
                self._process.kill()
                until = float("inf")
        self._streams.close()

    def completed(self) -> Completed:
        """The result of a command that has ended. Raises as `NodeCommands.execute`."""
        self._streams.close()
        status, printed = int(self._process.returncode), self._printed
        if status < 0 or (status and not self.announcement.process):  # Docker's program failed, not the command
            said = printed["stderr"].decode(errors="replace").strip() or printed["stdout"].decode(errors="replace")
            if '"sh"' in said:
                raise NoShell("the node has no shell")
            raise subprocess.CalledProcessError(status, "docker exec", stderr=said)
        return Completed(status, bytes(printed["stdout"]), bytes(printed["stderr"]), self._truncated)
