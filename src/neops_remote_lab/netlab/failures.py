"""Classifies netlab's failures (a rejected topology, a misconfigured host, a foreign lab) and describes them."""

import errno
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

GOOD_TOPOLOGY: Final = """\
defaults.device: linux
nodes: [a, b]
links: [a-b]
"""
"""A topology that netlab accepts on every host whose defaults are valid."""
GOOD_NAME: Final = "topology.yml"
DEFAULTS: Final = ("~/.netlab.yml", "~/topology-defaults.yml", "/etc/netlab/defaults.yml")
"""Files in which netlab looks for a host's defaults."""
_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded")
_USAGE: Final = 2
"""argparse's exit status for wrong arguments. These come from the operator, not from the topology."""

Probe = Callable[[Path, threading.Event], object]
"""Runs `netlab create` for the good topology in a directory; the event aborts it.

Raises subprocess.CalledProcessError if netlab fails.
"""


class TopologyRejected(ValueError):
    """netlab rejects the topology; the message is netlab's."""


class SharesHost(TopologyRejected):
    """The topology would share something with other labs of this host; the message names its keys."""


class LabInTheWay(BlockingIOError):
    """A lab of another process or user prevents ours from starting; the message names it."""


class RejectionClassifier:
    """Distinguishes a rejected topology from a host on which netlab rejects every topology."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._guard = threading.Lock()
        self._good: list[tuple[int, int] | None] | None = None

    def raise_cause(
        self, error: subprocess.CalledProcessError, interrupt: threading.Event, *, memory: int | None = None
    ) -> NoReturn:
        """Raise the exception that describes why netlab failed before it started anything.

        Args:
            interrupt: once set, aborts a running netlab command with InterruptedError.
            memory: the memory limit of the failed command, in bytes.

        Raises:
            TopologyRejected: netlab rejects the topology; the message is netlab's.
            MemoryError: netlab needed more than `memory`.
            OSError: the disk is full.
            subprocess.SubprocessError: another problem of the host.
        """
        output = str(error.stderr or "")
        if any(words in output for words in _NO_SPACE):
            raise OSError(errno.ENOSPC, "the disk of the lab host is full") from None
        if memory is not None and "MemoryError" in output:
            limit = f"{memory} bytes of memory, the limit that --max-create-bytes sets"
            raise MemoryError(f"netlab needs more than {limit} on the lab host, to check this topology") from None
        if error.returncode < 0 or error.returncode == _USAGE:
            raise error
        self.require_good_defaults(interrupt)
        raise TopologyRejected(output) from None

    def require_good_defaults(self, interrupt: threading.Event) -> None:
        """Raise SubprocessError if netlab rejects every topology on this host. `interrupt` as for `raise_cause`."""
        if wrong := self.wrong_defaults(interrupt):
            raise subprocess.SubprocessError(
                "the lab host's own netlab defaults are at fault, not the topology: `netlab create` fails there for "
                f"every topology, see {', '.join(DEFAULTS)} and --netlab-up-args on the host. netlab says: {wrong}"
            ) from None

    def wrong_defaults(self, interrupt: threading.Event) -> str | None:
        """netlab's message if it rejects the good topology, otherwise None. Cached until a defaults file changes."""
        now = [_stamp(Path(name).expanduser()) for name in DEFAULTS]
        with self._guard:
            if self._good == now:
                return None
            self._good = None
            with tempfile.TemporaryDirectory(prefix="neops-remote-lab-") as scratch:
                (Path(scratch) / GOOD_NAME).write_text(GOOD_TOPOLOGY, encoding="utf-8")
                try:
                    self._probe(Path(scratch), interrupt)
                except subprocess.CalledProcessError as error:
                    return str(error.stderr)
            self._good = now
        return None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def failure(error: BaseException) -> str:
    """Describe the failure of a command for a user, without paths of the host."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit status {error.returncode}: {error.stderr or 'it printed nothing'}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:g} s and was ended"
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str | os.PathLike) else ""
        return name + error.strerror
    return str(error)
