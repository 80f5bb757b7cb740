"""What the pytest plugin costs a run without any lab test."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.measure import Row, Sample, Target, require
from bench.servers import Bench, guarded

PLUGIN = "neops_remote_lab.testing.plugin"
EMPTY = "empty_plugin"
FIXTURE = "import pytest\n@pytest.fixture\ndef nothing():\n    pass\n"
TESTS = "def test_nothing():\n    pass\n"
LISTING = """\
import json
import sys
def pytest_unconfigure(config):
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def measure(bench: Bench) -> list[Row]:
    """The rows: milliseconds of the process, beside none and an empty plugin, and what is imported for it."""
    folder = bench.folder("plugin")
    for name, text in (("test_nothing", TESTS), ("listing", LISTING), (EMPTY, FIXTURE)):
        (folder / f"{name}.py").write_text(text)
    foreign = _foreign_modules(folder)
    wall: dict[str, list[float]] = {plugin: [] for plugin in (PLUGIN, EMPTY, "")}
    cpu: dict[str, list[float]] = {plugin: [] for plugin in wall}
    for turn in range(bench.choose(20, 100)):
        for plugin in wall if turn % 2 else reversed(wall):
            took, processor = _run(folder, plugin)
            wall[plugin].append(1000 * took)
            cpu[plugin].append(1000 * processor)
    notes = {}
    for other in ("", EMPTY):
        more = Sample([ours - theirs for ours, theirs in zip(cpu[PLUGIN], cpu[other], strict=True)])
        notes[other] = f"CPU time of the pairs differs by {more.median:.1f} ms in the median"
    case, target = "pytest without lab tests", Target(excess=5)
    names = ", ".join(foreign[:3]) or "the standard library alone"
    ours, none = Sample(wall[PLUGIN]), Target(ceiling=0)
    return [
        Row("plugin cost", case, "ms", ours, "no plugin", Sample(wall[""]), target, note=notes[""]),
        Row("plugin cost", case, "ms", ours, "empty plugin", Sample(wall[EMPTY]), note=notes[EMPTY]),
        Row("plugin cost", "imports from elsewhere", "", Sample([len(foreign)]), "no plugin", None, none, note=names),
    ]


def _command(*plugins: str) -> list[str]:
    chosen = [word for plugin in plugins if plugin for word in ("-p", plugin)]
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "test_nothing.py"]


def _environment(folder: Path) -> dict[str, str]:
    # Whatever else is installed beside pytest would be the larger part of the run.
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REMOTE_LAB_")}
    return {**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": paths, "PYTEST_ADDOPTS": ""}


def _run(folder: Path, plugin: str) -> tuple[float, float]:
    """Wall and processor seconds of a run."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        guarded(_command(plugin)),
        cwd=folder,
        env=_environment(folder),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    require(done.returncode == 0 and "1 passed" in done.stdout, f"pytest failed: {done.stdout}{done.stderr}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _foreign_modules(folder: Path) -> list[str]:
    """Top-level packages that come with the plugin and are neither it nor of the standard library."""
    found = {}
    for plugin in (PLUGIN, ""):
        done = subprocess.run(
            guarded(_command(plugin, "listing")),
            cwd=folder,
            env=_environment(folder),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        require(done.returncode == 0, f"pytest failed: {done.stdout}{done.stderr}")
        found[plugin] = set(json.loads((folder / "modules.json").read_text()))
    added = found[PLUGIN] - found[""]
    require(PLUGIN in added, "the plugin was not loaded")
    roots = {name.partition(".")[0] for name in added}
    return sorted(roots - set(sys.stdlib_module_names) - {"neops_remote_lab"})
