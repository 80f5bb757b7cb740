"""The time from `pip install` in a fresh virtual environment to the first passed test."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.documents import file_of
from tests.reader import NO_INDEX, build_wheel

from bench.measure import BenchError, Row, Sample, Target, require
from bench.servers import Bench

TIMEOUT = 200
FIVE_MINUTES = Target(ceiling=300)
SUITE = ("ospf.yml", "conftest.py", "test_ospf.py")
"""The files that the README shows."""
PREINSTALLED = {"pip", "setuptools"}
"""Packages of a new virtual environment."""


def measure(bench: Bench) -> list[Row]:
    """Measure; rows have no numbers if the package index cannot be reached."""
    directory = bench.root / "first-test"
    directory.mkdir()
    environment = {**_outside(), **build_wheel(directory / "wheel")}
    server = bench.our_server()
    try:
        server.start()
        install, test = _first_green_test(directory, {**environment, "REMOTE_LAB_URL": server.url})
    except IndexUnreachableError as error:
        note = f"the package index cannot be reached: {error}"
        return [Row("first test", "pip install to green", "s", None, "-", note=note)]
    finally:
        server.close()
    packages = _packages(directory, environment)
    size = _size(directory / "venv" / "lib")
    seconds = Sample([install + test])
    note = f"pip install {install:.1f} s"
    return [
        Row("first test", "packages installed", "", Sample([len(packages)]), "-"),
        Row("first test", "their size", "MB", Sample([size / 1e6]), "-"),
        Row("first test", "pip install to green", "s", seconds, "-", target=FIVE_MINUTES, note=note),
    ]


class IndexUnreachableError(Exception):
    """pip could not install the dependencies; the message is pip's."""


def _first_green_test(directory: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Run the commands of the README. Returns the seconds of the installation and of the test run."""
    for name in SUITE:
        directory.joinpath(name).write_text(file_of("README.md", name), encoding="utf-8")
    began = time.perf_counter()
    _run([sys.executable, "-m", "venv", "venv"], directory, environment)
    _run(["venv/bin/pip", "install", "--quiet", "neops-remote-lab"], directory, environment)
    installed = time.perf_counter()
    shown = _run(["venv/bin/pytest", "--quiet", "-p", "no:cacheprovider"], directory, environment)
    require("1 passed" in shown, f"the first test is not green: {shown[-500:]}")
    return installed - began, time.perf_counter() - installed


def _run(command: list[str], directory: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "install" in command and NO_INDEX.search(done.stderr):
            raise IndexUnreachableError(last)
        raise BenchError(f"{' '.join(command)}: {last}: {done.stdout[-500:]}")
    return done.stdout


def _outside() -> dict[str, str]:
    """The variables without those that refer to the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_"))}


def _packages(directory: Path, environment: dict[str, str]) -> set[str]:
    shown = _run(["venv/bin/pip", "list", "--format=freeze"], directory, environment)
    return {line.partition("==")[0] for line in shown.splitlines()} - PREINSTALLED


def _size(directory: Path) -> int:
    """Bytes of all packages, except those of a new virtual environment."""
    (packages,) = directory.glob("python*/site-packages")
    own = [entry for entry in packages.iterdir() if entry.name.split("-")[0] not in PREINSTALLED]
    files = [file for entry in own for file in ([entry] if entry.is_file() else entry.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)
