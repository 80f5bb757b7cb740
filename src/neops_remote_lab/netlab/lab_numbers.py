"""Gives each lab a number that no other lab of the host has, for as long as the lab's directory exists.

A number is an id for netlab's multilab plugin, and selects the lab's management network. netlab itself does not notice
when two labs have the same id. The end of one then destroys the other, with exit status 0.
"""

import threading
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from filelock import Timeout

from neops_remote_lab.core.host_locks import HostLock
from neops_remote_lab.netlab import lab_network, ownership
from neops_remote_lab.netlab.failures import LabInTheWay

MAX_NUMBER: Final = 200
"""The largest id that the multilab plugin accepts; the smallest is 1."""


class LabNumbers:
    """The numbers of the labs of this process. Methods may be called from any thread."""

    def __init__(self, lock_dir: Path, work_dir: Path, network: IPv4Network) -> None:
        """`network` has the management networks of all labs."""
        self._lock_dir = lock_dir
        self._work_dir = work_dir
        self._network = network
        self._guard = threading.Lock()
        self._locks: dict[Path, tuple[int, HostLock]] = {}

    def subnet(self, number: int) -> IPv4Network:
        """The management network of the lab with a number."""
        return lab_network.subnet_of(self._network, number)

    def take(self, base: Path, *, spare: int = 0) -> int:
        """The number of a lab: the recorded one, or a free one, which is recorded.

        Args:
            base: the lab's directory.
            spare: how many numbers to leave free for others.

        Raises:
            LabInTheWay: no number is free.
            OSError: the number cannot be recorded.
        """
        with self._guard:
            self._forget_removed()
            if base in self._locks:
                return self._locks[base][0]
            used = ownership.numbers(self._work_dir) | {number for number, _ in self._locks.values()}
            free = [number for number in range(1, MAX_NUMBER + 1) if number not in used]
            for number in free if len(free) > spare else ():
                # The lock excludes other servers, and the network labs whose directory is not ours or no longer exists.
                if (lock := self._locked(number)) is None:
                    continue
                if any(lab_network.in_use(self.subnet(number))):
                    lock.release()
                    continue
                ownership.set_number(base, number)
                self._locks[base] = number, lock
                return number
        raise LabInTheWay(
            f"all {MAX_NUMBER} lab numbers of this host are in use or kept for labs that are about to start"
        )

    def adopt(self, base: Path) -> None:
        """Take the recorded number of a lab of an earlier process, if it has one.

        Raises:
            LabInTheWay: another process has a lab with that number.
        """
        with self._guard:
            number = ownership.number_of(base)
            if number is None or base in self._locks:
                return
            if (lock := self._locked(number)) is None:
                raise LabInTheWay(f"another process of this host has a lab with the number {number} of this lab")
            self._locks[base] = number, lock

    def _locked(self, number: int) -> HostLock | None:
        lock = HostLock(self._lock_dir, f"number-{number}")
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def _forget_removed(self) -> None:
        for base in [base for base in self._locks if not base.exists()]:
            _, lock = self._locks.pop(base)
            lock.release()
