"""netlab's log files: limited in size, and kept for some days if a lab did not start."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

FAILED: Final = "failed-labs"
"""The directory, below the work directory, for the logs of labs that did not start."""
LEFT_OUT: Final = b"\n[remote-lab] some of the output is left out here, since it is over the limit (--max-log-bytes)\n"
SECONDS_A_DAY: Final = 86_400


class Bound:
    """Limits the size of a log that a process is appending to: the first quarter and the last part are kept."""

    def __init__(self, log: Path, limit: int) -> None:
        self._log = log
        self._limit = limit
        self.was_cut = False

    def enforce(self) -> None:
        """Cut the middle out of the log if it is too large. Output that is appended meanwhile may be lost."""
        with suppress(OSError):  # if the log is gone or the disk is full, the command itself fails
            if self._log.stat().st_size > self._limit:
                self._cut(self._limit // 4)

    def _cut(self, quarter: int) -> None:
        with self._log.open("r+b") as log:
            log.seek(-quarter, os.SEEK_END)
            end = log.read(2 * quarter)
            log.truncate(quarter)
        with self._log.open("ab") as log:
            log.write(LEFT_OUT + end)
        self.was_cut = True


class FailedLogs:
    """The logs of labs that did not start, by lab id. All methods block."""

    def __init__(self, work_dir: Path, *, days: float, number: int) -> None:
        self._directory = work_dir / FAILED
        self._seconds = days * SECONDS_A_DAY
        self._number = number

    def path(self, lab_id: str) -> Path:
        """The path under which the log of a lab is kept if the lab does not start."""
        return self._directory / f"{lab_id}.log"

    def keep(self, lab_id: str, log: Path) -> None:
        """Create a hard link to a log, which gets all further output and survives the lab's directory."""
        with suppress(OSError):  # on a full disk, the start itself fails or not
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            log.touch()
            os.link(log, self.path(lab_id))

    def discard(self, lab_id: str) -> None:
        """Remove the link: the lab is running."""
        self.path(lab_id).unlink(missing_ok=True)

    def prune(self) -> None:
        """Remove logs that are too old, and the oldest ones above the maximum number."""
        if not self._directory.is_dir():
            return
        logs = sorted(self._directory.glob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)
        too_old = time.time() - self._seconds
        for position, log in enumerate(logs):
            if position >= self._number or log.stat().st_mtime < too_old:
                log.unlink(missing_ok=True)
