"""`python -m bench`: measure, print one table, write JSON and pictures."""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from bench.measure import BenchError, Row
from bench.peer import NoPeerError, find_peer
from bench.pictures import draw_all
from bench.rows import ROWS
from bench.servers import Bench, scratch
from bench.table import as_json, table

RESULTS: Final = Path(__file__).parent / "results"
FILES: Final = 16_384
"""Limit of open files for thousands of long polls. The servers inherit it."""
ROW_LIMIT: Final = {False: 240, True: 900}
"""Maximum seconds for one group of rows, in a short and in a full run."""
# Exceptions that fail one group of rows. The other rows are measured nevertheless.
FAILURES: Final = (
    BenchError,
    AssertionError,
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    subprocess.SubprocessError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the exit status is 1 when something could not be measured."""
    options = _parser().parse_args(arguments)
    _raise_file_limit()
    # Users run cached bytecode. With this variable every process would compile all modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    peer, no_peer = None, ""
    try:
        peer = find_peer(options.peer)
    except NoPeerError as error:
        no_peer = f"no peer: {error}"
        print(no_peer)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    began = datetime.now(UTC)
    with scratch() as root:
        bench = Bench(options.full, root, peer, no_peer)
        for name in options.only or ROWS:
            _measure(name, bench, rows, failures)
    print(f"\n{table(rows)}\n")
    _write(rows, failures, began, full=options.full)
    missed = [f"{row.name} ({row.case})" for row in rows if row.met is False]
    print(f"targets missed: {', '.join(missed) or 'none'}")
    for name, why in failures.items():
        print(f"NOT MEASURED: {name}: {why}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds and longer ones: 30 minutes instead of 6")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--peer", type=Path, metavar="VENV", help="a virtual environment that holds the peer and pytest"
    )
    return parser


def _measure(name: str, bench: Bench, rows: list[Row], failures: dict[str, str]) -> None:
    print(f"{name} … ", end="", flush=True)
    began = time.monotonic()
    try:
        with _time_limit(ROW_LIMIT[bench.full]):
            rows += ROWS[name](bench)
    except FAILURES as error:
        failures[name] = f"{type(error).__name__}: {error}"
        print("FAILED", end=" ")
    print(f"{time.monotonic() - began:.0f} s")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        raise BenchError(f"it was not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _write(rows: list[Row], failures: dict[str, str], began: datetime, *, full: bool) -> None:
    RESULTS.mkdir(exist_ok=True)
    prefix = f"{began:%Y%m%dT%H%M%SZ}-{'full' if full else 'short'}"
    report = {"began": began.isoformat(), "full": full, "machine": _machine(), "failures": failures}
    path = RESULTS / f"{prefix}.json"
    text = json.dumps({**report, "rows": [as_json(row) for row in rows]}, indent=1)
    path.write_text(text, encoding="utf-8")
    written = [path, *draw_all(rows, RESULTS, prefix)]
    print("written:", *(os.path.relpath(one) for one in written))


def _machine() -> dict[str, Any]:
    packages = ("neops-remote-lab", "starlette", "uvicorn", "uvloop", "httptools", "sqlalchemy", "httpx")
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "packages": versions,
    }


if __name__ == "__main__":
    sys.exit(main())
