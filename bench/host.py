"""Lab hosts of measurements: the fake netlab with the durations of the real one, and helpers for both."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.fakes import FakeNetlab, install_fake_netlab, wait_until
from tests.server import RealNetlab

from bench.measure import BenchError, require

TIMES: Final = {
    "create_seconds": 0.7,
    "create_node_seconds": 0.043,
    "probe_seconds": 0.14,
    "node_seconds": 0.2,
    "config_seconds": 0.5,
    "inspect_seconds": 0.1,
    "down_seconds": 0.4,
}
"""Durations of the fake netlab, measured with networklab 26.10 and 1 to 30 FRR routers, plus `START_UP` for imports.

Only the start of a node is shorter: 0.6 s were measured on two cores.
"""
START_UP: Final = 0.2


def install(root: Path, **knobs: object) -> FakeNetlab:
    """Install the fake netlab below `root`. `knobs` are added to `TIMES`."""
    fake = install_fake_netlab(root, import_seconds=START_UP)
    fake.control(**{**TIMES, **knobs})
    return fake


def real_netlab_problem() -> str:
    """Why the real netlab cannot start containers on this machine; empty if it can."""
    absent = [program for program in ("netlab", "docker", "containerlab") if shutil.which(program) is None]
    if absent:
        return f"this machine lacks {', '.join(absent)}"
    docker = str(shutil.which("docker"))
    engine = subprocess.run([docker, "info"], capture_output=True, check=False, timeout=60)
    return "the Docker engine does not run" if engine.returncode else ""


@dataclass(frozen=True)
class NetlabLog:
    """The log of the fake netlab from a line on."""

    fake: FakeNetlab
    start: int

    @classmethod
    def now(cls, fake: FakeNetlab) -> "NetlabLog":
        return cls(fake, len(fake.log()))

    def started(self) -> list[list[str]]:
        """The arguments of each netlab process."""
        return [line["argv"][1:] for line in self.fake.log()[self.start :] if line["event"] == "start"]

    def ups(self) -> int:
        """The number of `netlab up` processes."""
        return sum(argv[:1] == ["up"] for argv in self.started())


def require_order(fake: FakeNetlab) -> None:
    """Raise `BenchError` if two labs were running at the same time."""
    require(not fake.violations(), f"two labs at the same time: {fake.violations()}")


def wait_clean(host: FakeNetlab | RealNetlab, timeout: float = 60) -> None:
    """Wait until nothing of any lab is left on the host. Raises `BenchError` after `timeout` seconds."""
    try:
        wait_until(lambda: not host.leftovers(), timeout)
    except AssertionError:
        raise BenchError(f"the lab was not torn down: {host.leftovers()}") from None


def netlab(host: FakeNetlab | RealNetlab, directory: Path, *arguments: str) -> float:
    """Run netlab in a directory. Returns its duration in seconds."""
    environment: dict[str, Any] = host.environment()
    program = shutil.which("netlab", path=environment["PATH"])
    require(program, "netlab is not on PATH")
    with (directory / "output.txt").open("ab") as output:
        began = time.perf_counter()
        done = subprocess.run(
            [str(program), *arguments],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
            timeout=300,
        )
        took = time.perf_counter() - began
    shown = (directory / "output.txt").read_text(errors="replace")[-2000:]
    require(done.returncode == 0, f"netlab {' '.join(arguments)} failed: {shown}")
    return took
