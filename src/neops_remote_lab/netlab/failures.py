"""Whose fault it is that netlab made no lab of a topology, and how a person is told."""

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
"""A topology that netlab accepts on every host, provided the host's own defaults are right."""
GOOD_NAME: Final = "topology.yml"
DEFAULTS: Final = ("~/.netlab.yml", "~/topology-defaults.yml", "/etc/netlab/defaults.yml")
"""Where netlab looks for a host's defaults."""
_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded")
_USAGE: Final = 2
"""What argparse exits with where a command has a wrong argument: arguments are the operator's."""

Probe = Callable[[Path, threading.Event], object]
"""Runs `netlab create` for the good topology in a directory, until the event is set.

Raises subprocess.CalledProcessError where netlab fails.
"""


class TopologyRejected(ValueError):
    """netlab rejects the topology; the message is netlab's own."""


class LabInTheWay(BlockingIOError):
    """A lab of another process, or of somebody else, keeps ours from starting; the message says whose."""


class Judge:
    """Tells a topology that netlab rejects from a host on which netlab rejects everything."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._guard = threading.Lock()
        self._good: list[tuple[int, int] | None] | None = None

    def rejected(
        self, error: subprocess.CalledProcessError, interrupt: threading.Event, *, memory: int | None = None
    ) -> NoReturn:
        """Raise what a failure of netlab is, before it has started anything.

        Args:
            interrupt: ends a question to netlab early, once it is set; InterruptedError is raised then.
            memory: the limit under which netlab ran, in bytes.

        Raises:
            TopologyRejected: the message is netlab's own.
            MemoryError: it needed more than `memory`.
            OSError: the disk is full.
            subprocess.SubprocessError: the host is at fault in another way.
        """
        said = str(error.stderr or "")
        if any(words in said for words in _NO_SPACE):
            raise OSError(errno.ENOSPC, "the disk of the lab host is full") from None
        if memory is not None and "MemoryError" in said:
            limit = f"{memory} bytes of memory, the limit that --max-create-bytes sets"
            raise MemoryError(f"netlab needs more than {limit} on the lab host, to check this topology") from None
        if error.returncode < 0 or error.returncode == _USAGE:
            raise error
        self.require_good_defaults(interrupt)
        raise TopologyRejected(said) from None

    def require_good_defaults(self, interrupt: threading.Event) -> None:
        """Raise SubprocessError where netlab rejects every topology. `interrupt` as for `rejected`."""
        if wrong := self.wrong_defaults(interrupt):
            raise subprocess.SubprocessError(
                "the lab host's own netlab defaults are at fault, not the topology: `netlab create` fails there for "
                f"every topology, see {', '.join(DEFAULTS)} and --netlab-up-args on the host. netlab says: {wrong}"
            ) from None

    def wrong_defaults(self, interrupt: threading.Event) -> str | None:
        """What netlab says of the good topology; None where it accepts it. Asked again where the defaults change."""
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
    """What a command's failure was, for a person."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit status {error.returncode}: {error.stderr or 'it printed nothing'}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it took longer than {error.timeout:g} s and was ended"
    if isinstance(error, OSError) and error.strerror:
        # Without the directory, which is the host's own business.
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str | os.PathLike) else ""
        return name + error.strerror
    return str(error)
