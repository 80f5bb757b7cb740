"""The cost of the installed pytest plugin in a run without lab tests."""

import os
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from bench.measure import Row, Sample, Target, require
from bench.servers import Bench, guarded

SOURCE: Final = Path(__file__).parents[2]
PLUGIN: Final = "neops_remote_lab.testing.plugin"
OURS, EMPTY, NONE = "ours", "empty plugin", "no plugin"
BUILD_TIMEOUT: Final = 120
TESTS: Final = "def test_nothing():\n    pass\n"
EMPTY_PLUGIN: Final = {
    "empty_plugin.py": "import pytest\n@pytest.fixture\ndef nothing():\n    pass\n",
    "empty_plugin-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: empty-plugin\nVersion: 1\n",
    "empty_plugin-1.dist-info/entry_points.txt": "[pytest11]\nempty = empty_plugin\n",
    "empty_plugin-1.dist-info/RECORD": "empty_plugin.py,,\n",
}
LISTING: Final = """\
import sys
def pytest_unconfigure(config):
    with open("modules.txt", "w") as file:
        file.write("\\n".join(sys.modules))
"""


def measure(bench: Bench) -> list[Row]:
    """Measure CPU time with the plugin, with an empty plugin and with none, and the imports of the plugin."""
    directory = bench.directory("plugin")
    paths = _environments(directory)
    (directory / "test_nothing.py").write_text(TESTS)
    (directory / "listing.py").write_text(LISTING)
    foreign = _foreign_modules(directory, paths)  # these runs also fill the bytecode cache
    cpu: dict[str, list[float]] = {kind: [] for kind in (OURS, EMPTY, NONE)}
    wall: dict[str, list[float]] = {kind: [] for kind in cpu}
    for turn in range(bench.choose(20, 100)):
        for kind in cpu if turn % 2 else reversed(cpu):
            took, processor = _run(directory, paths[kind])
            wall[kind].append(1000 * took)
            cpu[kind].append(1000 * processor)
    counted = {kind: _instructions(directory, path) for kind, path in paths.items()} if shutil.which("valgrind") else {}
    names = ", ".join(foreign[:3]) or "the standard library alone"
    imports = Row(
        "plugin cost", "imports from elsewhere", "", Sample([len(foreign)]), NONE, None, Target(ceiling=0), note=names
    )
    rows = (_row(cpu, wall, counted, other, target) for other, target in ((NONE, Target(excess=5)), (EMPTY, Target())))
    return [*rows, imports]


def _row(
    cpu: dict[str, list[float]], wall: dict[str, list[float]], counted: dict[str, int], other: str, target: Target
) -> Row:
    ours, theirs = Sample(cpu[OURS]), Sample(cpu[other])
    more, on_the_clock = (_difference(took, other) for took in (cpu, wall))
    note = f"runs in turns differ by {more:.1f} ms in the median, {on_the_clock:.1f} ms on the clock"
    if counted:  # independent of other load
        more = theirs.median * (counted[OURS] / counted[other] - 1)
        note = f"by instructions {more:.1f} ms more; {note}"
    case = "pytest without lab tests, CPU"
    return Row("plugin cost", case, "ms", ours, other, theirs, target, given_excess=more, note=note)


def _difference(took: dict[str, list[float]], other: str) -> float:
    return Sample([ours - theirs for ours, theirs in zip(took[OURS], took[other], strict=True)]).median


def _environments(directory: Path) -> dict[str, str]:
    """A directory for PYTHONPATH with pytest and the plugin of each kind."""
    found = {kind: directory / kind for kind in (OURS, EMPTY, NONE)}
    for path in found.values():
        _link_distributions(path, "pytest")
    _unpack_wheel(found[OURS])
    for name, text in EMPTY_PLUGIN.items():
        (found[EMPTY] / name).parent.mkdir(exist_ok=True)
        (found[EMPTY] / name).write_text(text)
    return {kind: str(path) for kind, path in found.items()}


def _link_distributions(target: Path, name: str) -> None:
    """Link an installed distribution and its dependencies into a new directory."""
    target.mkdir()
    for needed in set(_closure(name)):
        distribution = metadata.distribution(needed)
        tops = {Path(file).parts[0] for file in distribution.files or () if ".." not in Path(file).parts}
        for top in tops - {"__pycache__"}:
            (target / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())


def _closure(name: str) -> Iterator[str]:
    yield name
    for requirement in map(Requirement, metadata.requires(name) or ()):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from _closure(requirement.name)


def _unpack_wheel(target: Path) -> None:
    """Install this project's wheel into a directory."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target.parent)]
    done = subprocess.run(build, cwd=SOURCE, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False)
    require(done.returncode == 0, f"the wheel was not built: {done.stdout}{done.stderr}")
    [wheel] = target.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)


def _instructions(directory: Path, path: str) -> int:
    """The number of instructions of a run, counted by callgrind."""
    printed = _pytest(directory, path, guard=["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"])
    found = re.search(r"Collected : (\d+)", printed)
    require(found, f"callgrind counted nothing: {printed[-1000:]}")
    assert found is not None
    return int(found[1])


def _pytest(directory: Path, path: str, *options: str, guard: Sequence[str] = ()) -> str:
    """Run pytest. Returns its output."""
    # With -S, Python does not search the packages of this environment, which may contain other plugins.
    command = [sys.executable, "-S", "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_nothing.py"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("REMOTE_LAB_", "PYTEST_"))}
    done = subprocess.run(
        guarded([*guard, *command]),
        cwd=directory,
        env={**kept, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    require(done.returncode == 0 and "1 passed" in done.stdout, f"pytest failed: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _run(directory: Path, path: str) -> tuple[float, float]:
    """Run pytest. Returns the seconds of wall-clock time and of CPU time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _pytest(directory, path)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _foreign_modules(directory: Path, paths: dict[str, str]) -> list[str]:
    """Top-level packages that the plugin imports, except itself and the standard library."""
    found = {}
    for kind, path in paths.items():
        _pytest(directory, path, "-p", "listing")
        found[kind] = set((directory / "modules.txt").read_text().splitlines())
    added = found[OURS] - found[NONE]
    require(PLUGIN in added, "the plugin was not loaded")
    require("empty_plugin" in found[EMPTY], "the empty plugin was not loaded")
    return sorted({name.partition(".")[0] for name in added} - set(sys.stdlib_module_names) - {"neops_remote_lab"})
