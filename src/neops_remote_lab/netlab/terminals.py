"""Runs programs on a pseudo-terminal in a node with `docker exec --tty`."""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import termios
import tty
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import psutil

from neops_remote_lab.netlab.commands import NetlabCommands
from neops_remote_lab.netlab.node_commands import Announcement, NodeCommands, docker_arguments, new_mark
from neops_remote_lab.netlab.nodes import Node

EXIT_TIMEOUT: Final = 1.0
"""Seconds to wait for the exit status after the program has closed its terminal."""
PIECE_BYTES: Final = 64 * 1024
# A key sequence that no program needs, because Docker holds back its first key. The default, Ctrl-P, is used in shells.
_DETACH_KEYS: Final = "--detach-keys=ctrl-@,ctrl-^"
_SHELL: Final = ["sh", "-c", "command -v bash >/dev/null && exec bash -il; exec sh -il"]


class Size(NamedTuple):
    """The size of a terminal, in characters."""

    columns: int
    rows: int


def console_program(raw: Mapping[str, Any]) -> list[str] | None:
    """The program that `netlab connect` runs in the container of a node; None if it uses SSH.

    Args:
        raw: netlab's data about the node.
    """
    if (raw.get("netlab_console_connection") or raw.get("ansible_connection")) != "docker":
        return None
    shell = raw.get("docker_shell")
    words = shell.split() if isinstance(shell, str) else shell
    return [str(word) for word in words] if isinstance(words, list) and words else _SHELL


class Terminal:
    """A program on a terminal. Reads and writes do not block."""

    def __init__(self, netlab: NetlabCommands, node: Node, words: Sequence[str], *, size: Size, lab_id: str) -> None:
        """Start the program; blocks briefly.

        Args:
            words: the program and its arguments; the first one does not begin with a hyphen.

        Raises:
            OSError: the Docker command cannot be started.
        """
        self.node = node
        self.mark = new_mark()
        self.announcement = Announcement(self.mark)
        self.descriptor, other_end = os.openpty()
        """File descriptor of the terminal, for event loops."""
        try:
            tty.setraw(other_end)  # as Docker does later
            os.set_blocking(self.descriptor, False)
            self._set_size(size)
            # Docker sets the size only after the program has started, which may read it at once.
            before = f"stty columns {size.columns:d} rows {size.rows:d} 2>/dev/null"
            arguments = docker_arguments(node, words, self.mark, options=["--tty", _DETACH_KEYS], before=before)
            self._process: psutil.Popen = netlab.start_docker(arguments, lab_id=lab_id, terminal=other_end)
        except BaseException:
            os.close(self.descriptor)
            raise
        finally:
            os.close(other_end)

    def read(self) -> bytes | None:
        """Output of the program; empty at the end, None if there is none yet."""
        try:
            data = os.read(self.descriptor, PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:  # the other end is closed
            if error.errno != errno.EIO:
                raise
            data = b""
        known = self.announcement.process
        shown = self.announcement.feed(data)
        if self.announcement.process != known:
            self._tell_size()  # Docker may have missed an earlier change
        return shown if shown or not data else None

    def write(self, data: memoryview) -> int:
        """Write data. Returns the number of bytes written, which may be 0."""
        try:
            return os.write(self.descriptor, data)
        except BlockingIOError:
            return 0

    def resize(self, size: Size) -> None:
        """Change the size of the terminal, and notify the program."""
        self._set_size(size)
        self._tell_size()

    def _tell_size(self) -> None:
        with suppress(psutil.Error):
            self._process.send_signal(signal.SIGWINCH)

    def _set_size(self, size: Size) -> None:
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))

    def exit_status(self, seconds: float) -> int | None:
        """Wait at most `seconds` for the exit status; None if the program is still running. Blocks."""
        try:
            return int(self._process.wait(seconds))
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            return None

    def kill(self) -> None:
        """Kill the `docker` process."""
        self._process.kill()
        self._process.wait()


class Terminals:
    """Opens and closes terminals in nodes. All methods block."""

    def __init__(self, netlab: NetlabCommands, commands: NodeCommands, kill_grace: float) -> None:
        """`kill_grace`: seconds between SIGHUP and SIGKILL."""
        self._netlab = netlab
        self._commands = commands
        self._kill_grace = kill_grace

    def open(self, node: Node, words: Sequence[str], size: Size, lab_id: str) -> Terminal:
        """Start a program on a terminal. Raises as `Terminal`."""
        return Terminal(self._netlab, node, words, size=size, lab_id=lab_id)

    def close(self, terminal: Terminal, *, ended: bool) -> int | None:
        """Close a terminal. A program that is still running gets SIGHUP in the node, then SIGKILL.

        Args:
            ended: whether the program has closed its terminal.

        Returns:
            The exit status of the program; None if it is not known.
        """
        status = terminal.exit_status(EXIT_TIMEOUT if ended else 0)
        os.close(terminal.descriptor)
        if status is None:
            self._commands.end_in_node(terminal.node, terminal.mark, terminal.announcement.process, signal.SIGHUP)
            status = terminal.exit_status(self._kill_grace)
        if status is None:
            terminal.kill()
        return status
