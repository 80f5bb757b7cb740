"""One pytest suite from start to finish: with our plugin and server, with version 1.4.0, and with a script."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from tests.fakes import FakeNetlab, topology_text, wait_until
from tests.server import RealNetlab

from bench import host
from bench.host import NetlabLog
from bench.measure import PEER, Row, Sample, Target, require
from bench.servers import Bench, Server, guarded, real_host, sessions

LABS = ("one", "two", "three")
LAB_TESTS, OTHERS = 4, 100
PLUGIN_NAME = "neops-remote-lab"
"""The entry point of both versions."""

FIXTURES = """\
from pathlib import Path
from neops_remote_lab.testing.fixture import remote_lab_fixture
here = Path(__file__).parent
"""
BY_HAND = """\
from pathlib import Path
import pytest
"""
ONE_FIXTURE = '{lab} = remote_lab_fixture(here / "{lab}.yml", name="{lab}", reuse_lab=True)\n'
ONE_BY_HAND = """
@pytest.fixture
def {lab}():
    return sorted(path.name for path in Path("{directory}/host_vars").iterdir())
"""
LAB_TEST = """\
import time
import pytest
@pytest.mark.parametrize("number", range({count}))
def test_{lab}(number, {lab}):
    time.sleep({seconds})
    assert len({lab}) == 3
"""
OTHER_TEST = """\
import pytest
@pytest.mark.parametrize("number", range({count}))
def test_other(number):
    assert number >= 0
"""


class Suite:
    """A test suite, and the directories in which the script starts the labs."""

    def __init__(self, directory: Path, *, by_hand: bool, labs: Sequence[str] = LABS, test_seconds: float = 0) -> None:
        self.directory = directory
        self.tests = len(labs) * LAB_TESTS + OTHERS
        conftest = BY_HAND if by_hand else FIXTURES
        for lab in labs:
            (self.lab_directory(lab)).mkdir()
            conftest += (ONE_BY_HAND if by_hand else ONE_FIXTURE).format(lab=lab, directory=self.lab_directory(lab))
            topology = topology_text(3, name=f"lab{lab}")
            (directory / f"{lab}.yml").write_text(topology)
            (self.lab_directory(lab) / "topology.yml").write_text(topology)
            (directory / f"test_{lab}.py").write_text(LAB_TEST.format(lab=lab, count=LAB_TESTS, seconds=test_seconds))
        (directory / "conftest.py").write_text(conftest)
        (directory / "test_others.py").write_text(OTHER_TEST.format(count=OTHERS))

    def lab_directory(self, lab: str) -> Path:
        return self.directory / f"lab-{lab}"

    def with_ours(self, url: str) -> None:
        """Run the suite with this version's plugin and server."""
        installed = entry_points(group="pytest11", name=PLUGIN_NAME)
        plugin = ["-p", PLUGIN_NAME if installed else "neops_remote_lab.testing.plugin"]
        self.pytest(sys.executable, plugin, url, self.tests)

    def pytest(self, python: str, plugin: list[str], url: str, expect: int, *files: str) -> None:
        """Run the suite, or only these files, without other plugins."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REMOTE_LAB_")},
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            **({"REMOTE_LAB_URL": url} if url else {}),
        }
        if python == sys.executable:
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        else:
            environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            guarded([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *files]),
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        passed = done.returncode == 0 and f"{expect} passed" in done.stdout
        require(passed, f"the suite failed: {done.stdout[-3000:]}{done.stderr[-1000:]}")


def measure(bench: Bench) -> list[Row]:
    """Measure on the fake netlab."""
    fake = host.install(bench.directory("host"))
    rows = _on(bench, fake, "3 labs, fake", bench.choose(1, 3))
    host.require_order(fake)
    return rows


def measure_real(bench: Bench) -> list[Row]:
    """The same on the real netlab of this machine; some minutes, so in a full run only."""
    why = host.real_netlab_problem() or ("" if bench.full else "in a full run only")
    if why:
        return [Row("whole run", "3 labs, real", "s", None, PEER, note=f"skipped: {why}")]
    with real_host() as lab_host:
        return _on(bench, lab_host, "3 labs, real", 1)


def _on(bench: Bench, lab_host: FakeNetlab | RealNetlab, case: str, rounds: int) -> list[Row]:
    took: dict[str, list[float]] = {"ours": [], "peer": [], "script": []}
    ways: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(bench, lab_host),
        "script": lambda: _script(bench, lab_host),
    }
    if bench.peer:
        ways["peer"] = lambda: _theirs(bench, lab_host)
    for _ in range(rounds):
        for name, way in ways.items():
            took[name].append(way())
    ours, script = Sample(took["ours"]), Sample(took["script"])
    peer = Sample(took["peer"]) if took["peer"] else None
    return [
        Row("whole run", case, "s", ours, PEER, peer, Target(ratio=0.99), note=bench.no_peer),
        Row("whole run", case, "s", ours, "script by hand", script, Target(ratio=1.05)),
    ]


def _ours(bench: Bench, lab_host: FakeNetlab | RealNetlab) -> float:
    with bench.ours(lab_host) as server:
        return _with_server(bench, server, lab_host, lambda suite: suite.with_ours(server.url))


def _theirs(bench: Bench, lab_host: FakeNetlab | RealNetlab) -> float:
    with bench.theirs(lab_host) as server:
        assert server is not None
        assert bench.peer is not None
        python, url = bench.peer.python, server.url
        return _with_server(
            bench, server, lab_host, lambda suite: suite.pytest(python, ["-p", PLUGIN_NAME], url, suite.tests)
        )


def _with_server(
    bench: Bench, server: Server, lab_host: FakeNetlab | RealNetlab, run: Callable[[Suite], None]
) -> float:
    suite = Suite(bench.directory("suite"), by_hand=False)
    with _three_ups(lab_host):
        began = time.perf_counter()
        run(suite)
        took = time.perf_counter() - began
        wait_until(lambda: sessions(server) == 0, 30, "the run left its session behind")
    host.wait_clean(lab_host)
    return took


def _script(bench: Bench, lab_host: FakeNetlab | RealNetlab) -> float:
    """`netlab up`, pytest, `netlab down` for each lab; the tests without a lab go with the last one."""
    suite = Suite(bench.directory("script"), by_hand=True)
    with _three_ups(lab_host):
        began = time.perf_counter()
        for lab in LABS:
            directory = suite.lab_directory(lab)
            host.netlab(lab_host, directory, "up", "topology.yml")
            last = lab == LABS[-1]
            files = [f"test_{lab}.py", *(["test_others.py"] if last else [])]
            suite.pytest(sys.executable, [], "", LAB_TESTS + (OTHERS if last else 0), *files)
            host.netlab(lab_host, directory, "down", "--cleanup")
        took = time.perf_counter() - began
    host.wait_clean(lab_host)
    return took


@contextmanager
def _three_ups(lab_host: FakeNetlab | RealNetlab) -> Iterator[None]:
    """Raise `BenchError` unless one lab was started per topology."""
    since = NetlabLog.now(lab_host) if isinstance(lab_host, FakeNetlab) else None
    yield
    if since is not None:
        require(since.ups() == len(LABS), f"netlab up was started {since.ups()} times instead of {len(LABS)}")
