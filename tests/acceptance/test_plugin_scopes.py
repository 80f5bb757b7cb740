"""The pytest plugin as a user sees it: lab fixtures that live longer than one test, and those that share a lab."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable

import pytest

from tests.fakes import topology_text
from tests.plugin import PLUGIN, ups
from tests.server import LabServer

NOTING = """
import pathlib, pytest
from neops_remote_lab.testing.fixture import remote_lab_fixture

def note(*words):
    with open("events", "a", encoding="utf-8") as file:
        print(*words, file=file)

def pytest_runtest_call(item):
    note(item.name.removeprefix("test_"))

class Client:
    "A lab host that notes what it is asked for."
    def acquire(self, topology, reuse, *, extra_files=()):
        note("acquire", topology.name, *extra_files)
        return []
    def release(self):
        note("release")

@pytest.fixture(scope="session")
def remote_lab_client(): return Client()
"""
CONNECTION = """
@pytest.fixture(scope="{scope}")
def connection({lab}):
    note("open")
    yield
    note("close")
"""

Events = Callable[..., list[str]]


@pytest.fixture
def events(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Events:
    """A function that runs a suite of lab fixtures and modules, and returns the events in order."""
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {PLUGIN} -p no:cacheprovider")
    log = project.path / "events"

    def run(labs: str, /, *options: str, status: int = 0, **modules: str) -> list[str]:
        log.unlink(missing_ok=True)
        project.makeconftest(NOTING + textwrap.dedent(labs))
        project.makepyfile(**{f"test_{name}": text for name, text in modules.items()})
        result = project.runpytest_subprocess(*options)
        assert result.ret == status, result.stdout.str()
        return log.read_text(encoding="utf-8").splitlines()

    return run


TWO_MODULES = {
    "a": "def test_a1(connection): pass\ndef test_plain(): pass\ndef test_a2(connection): pass",
    "b": "def test_b1(connection): pass\ndef test_b2(ring): pass",
}


def lab(scope: str, *, reuse: bool, connection: str | None = None) -> str:
    made = f'ring = remote_lab_fixture("shared.yml", name="ring", scope="{scope}", reuse_lab={reuse})\n'
    return made + CONNECTION.format(lab="ring", scope=connection or scope)


def test_each_module_has_a_fresh_lab_of_its_own(events: Events) -> None:
    one = ["acquire shared.yml", "open"]
    assert events(lab("module", reuse=False), **TWO_MODULES) == [
        *(*one, "a1", "a2", "close", "release"),
        *(*one, "b1", "b2", "close", "release"),
        "plain",
    ]


def test_modules_share_a_lab_that_is_released_after_the_last_of_them(events: Events) -> None:
    assert events(lab("module", reuse=True), **TWO_MODULES) == [
        *("acquire shared.yml", "open", "a1", "a2", "close"),
        *("open", "b1", "b2", "close", "release"),
        "plain",
    ]


@pytest.mark.parametrize("reuse", [True, False])
def test_a_lab_with_session_scope_ends_after_the_last_test_that_uses_it(events: Events, reuse: bool) -> None:
    expected = ["acquire shared.yml", "open", "a1", "a2", "b1", "b2", "close", "release", "plain"]
    assert events(lab("session", reuse=reuse), **TWO_MODULES) == expected
    expected = ["acquire shared.yml", "open", "a1", "a2", "close", "open", "b1", "b2", "close", "release", "plain"]
    assert events(lab("session", reuse=reuse, connection="module"), **TWO_MODULES) == expected


def test_each_class_has_a_lab_of_its_own_and_so_has_a_test_without_a_class(events: Events) -> None:
    classes = """
        class TestA:
            def test_a1(self, connection): pass
            def test_plain(self): pass
            def test_a2(self, ring): pass
        def test_alone(connection): pass
        class TestB:
            def test_b(self, ring): pass
        """
    assert events(lab("class", reuse=False), classes=classes) == [
        *("acquire shared.yml", "open", "a1", "a2", "close", "release"),
        *("acquire shared.yml", "open", "alone", "close", "release"),
        *("acquire shared.yml", "b", "release"),
        "plain",
    ]


def test_a_lab_is_released_before_another_one_even_within_its_module(events: Events) -> None:
    labs = lab("module", reuse=False) + 'beam = remote_lab_fixture("fresh.yml", name="beam")\n'
    alternate = """
        def test_{0}1(connection): pass
        def test_{0}2(beam): pass
        def test_{0}3(connection): pass
        def test_{0}4(): pass
        """
    modules = {name: alternate.format(name) for name in "xy"}
    of_ring = [("acquire shared.yml", "open", f"{name}1", f"{name}3", "close", "release") for name in modules]
    of_beam = [("acquire fresh.yml", f"{name}2", "release") for name in modules]
    assert events(labs, **modules) == [*itertools.chain(*of_ring, *of_beam), "x4", "y4"]


def test_a_lab_is_released_even_if_a_dependent_fixture_fails(events: Events) -> None:
    labs = lab("session", reuse=True).replace('note("close")', "raise ConnectionError")
    assert events(labs, a="def test_a(connection): pass\ndef test_plain(): pass", status=1) == [
        *("acquire shared.yml", "open", "a", "release"),
        "plain",
    ]


@pytest.mark.parametrize("options", [["-p", "pytest_randomly"], ["--ff"]], ids=["randomly", "ff"])
@pytest.mark.parametrize("scope", ["module", "class"])
def test_the_tests_of_one_instance_stay_together_with_any_order(
    events: Events, monkeypatch: pytest.MonkeyPatch, options: list[str], scope: str
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", f"-p {PLUGIN}")
    suite = """
        import pathlib
        class Test{0}:
            def test_1(self, ring): pass
            def test_2(self, ring): assert pathlib.Path("good").exists()
            def test_3(self, ring): pass
        """
    modules = {name: suite.format(name.upper()) for name in "ab"}
    modules["c"] = "import pathlib\ndef test_good(): pathlib.Path('good').touch()"
    first = events(lab(scope, reuse=False), *options, status=1, **modules)
    again = events(lab(scope, reuse=False), *options, **modules)
    for found in first, again:
        assert [word for word in found if " " in word or word == "release"] == ["acquire shared.yml", "release"] * 2
    if options == ["--ff"]:
        assert again.index("2") == 1


RERUN = """
    tries = []
    def test_a1(connection):
        tries.append(1)
        assert len(tries) == 2
    def test_plain(): pass
    def test_a2(connection): pass
    """
NEIGHBOURS: dict[str, tuple[list[str], str]] = {
    "rerunfailures": (["-p", "pytest_rerunfailures", "--reruns", "2"], RERUN),
    "flaky": (["-p", "flaky.flaky_pytest_plugin", "--force-flaky", "--no-success-flaky-report"], RERUN),
    "timeout": (["-p", "pytest_timeout", "--timeout", "60"], TWO_MODULES["a"]),
    "randomly": (["-p", "pytest_randomly"], TWO_MODULES["a"]),
    "order": (
        ["-p", "pytest_order.plugin"],
        """
        import pytest
        @pytest.mark.order("last")
        def test_a1(connection): pass
        @pytest.mark.order(1)
        def test_plain(): pass
        @pytest.mark.order(2)
        def test_a2(connection): pass
        """,
    ),
    "asyncio": (
        ["-p", "pytest_asyncio.plugin", "-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=module"],
        """
        import pytest
        @pytest.fixture(scope="module")
        async def answering(connection):
            yield
        async def test_a1(answering): pass
        def test_plain(): pass
        def test_a2(connection): pass
        """,
    ),
    "lazy-fixtures": (
        ["-p", "pytest_lazy_fixtures.plugin"],
        """
        import pytest
        from pytest_lazy_fixtures import lf
        @pytest.mark.parametrize("used", [lf("connection")])
        def test_a1(used): pass
        def test_plain(): pass
        @pytest.mark.parametrize("used", [[lf("ring")]])
        def test_a2(used): pass
        """,
    ),
    "xdist": (["-p", "xdist", "-n", "1"], TWO_MODULES["a"]),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("reuse", [True, False])
def test_one_lab_and_one_connection_serve_a_module_beside_another_plugin(
    events: Events, name: str, reuse: bool
) -> None:
    options, module = NEIGHBOURS[name]
    found = events(lab("module", reuse=reuse), *options, module=module)
    of_lab = [word for word in found if not word.startswith(("a1", "a2"))]
    assert of_lab == ["acquire shared.yml", "open", "close", "release", "plain"]
    assert {word[:2] for word in found[2 : found.index("close")]} == {"a1", "a2"}


# Labs of the same contents


def test_fixtures_with_the_same_content_share_a_lab(events: Events, project: pytest.Pytester) -> None:
    project.path.joinpath("copy.yml").write_text(project.path.joinpath("shared.yml").read_text())
    for name in ("motd.j2", "banner.j2"):
        project.path.joinpath(name).write_text("welcome")
    labs = """
        one = remote_lab_fixture("shared.yml", name="one", reuse_lab=True)
        other = remote_lab_fixture("fresh.yml", name="other", reuse_lab=True)
        copy = remote_lab_fixture("copy.yml", reuse_lab=True, scope="module")
        alone = remote_lab_fixture("copy.yml", name="alone")
        motd = remote_lab_fixture("copy.yml", name="motd", reuse_lab=True, extra_files=["motd.j2"])
        banner = remote_lab_fixture("copy.yml", name="banner", reuse_lab=True, extra_files=["banner.j2"])
        both = remote_lab_fixture("copy.yml", name="both", reuse_lab=True, extra_files=["*.j2", "motd.j2"])
        all = remote_lab_fixture("shared.yml", name="all", reuse_lab=True, extra_files=["banner.j2", "motd.j2"])
        """
    tests = "".join(
        f"def test_{name}({name}): pass\n"
        for name in ("all", "both", "banner", "motd", "alone", "copy", "other", "one")
    )
    found = events(labs, labs=tests)
    assert found == [
        *("acquire shared.yml", "one", "copy", "release"),
        *("acquire fresh.yml", "other", "release"),
        *("acquire copy.yml", "alone", "release"),
        *("acquire copy.yml motd.j2", "motd", "release"),
        *("acquire copy.yml banner.j2", "banner", "release"),
        *("acquire copy.yml *.j2 motd.j2", "both", "all", "release"),
    ]


def test_two_fixtures_of_one_lab_are_still_two_labs_for_a_test(project: pytest.Pytester) -> None:
    project.makeconftest(
        """
        from neops_remote_lab.testing.fixture import remote_lab_fixture
        one = remote_lab_fixture("shared.yml", name="one", reuse_lab=True)
        two = remote_lab_fixture("shared.yml", name="two", reuse_lab=True, scope="session")
        """
    )
    project.makepyfile("def test_both(one, two): pass")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::test_both: one, two"])


# Labs that are asked for at run time


def test_an_existing_lab_is_not_a_second_lab_of_a_test_that_does_not_use_it(events: Events) -> None:
    labs = lab("session", reuse=True) + 'beam = remote_lab_fixture("fresh.yml", name="beam", scope="session")\n'
    tests = """
        def test_1(request): request.getfixturevalue("ring")
        def test_2(request): request.getfixturevalue("beam")
        def test_3(request): request.getfixturevalue("connection")
        def test_4(request):
            request.getfixturevalue("ring")
            request.getfixturevalue("beam")
        """
    assert events(labs, labs=tests, status=1) == [
        *("1", "acquire shared.yml"),
        *("2", "release", "acquire fresh.yml"),
        *("3", "release", "acquire shared.yml", "open"),
        *("4", "close", "release"),
    ]


def test_an_unknown_scope_fails_at_the_definition_of_the_fixture(project: pytest.Pytester) -> None:
    project.makeconftest(
        """
        from neops_remote_lab.testing.fixture import remote_lab_fixture
        lab = remote_lab_fixture("shared.yml", scope="package")
        """
    )
    result = project.runpytest_subprocess()
    result.stderr.fnmatch_lines(["*ValueError: the scope of a lab must be one of function, class, module, session*"])


# With a lab host


@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2", "--dist", "load"]], ids=["alone", "xdist"])
def test_a_connection_is_opened_once_for_each_module_of_a_shared_lab(
    online: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    online.path.joinpath("copy.yml").write_text(topology_text(nodes=1), encoding="utf-8")
    online.makeconftest(
        """
        import pathlib, pytest
        from neops_remote_lab.testing.fixture import remote_lab_fixture

        ring = remote_lab_fixture("shared.yml", name="ring", reuse_lab=True, scope="module")
        copy = remote_lab_fixture("copy.yml", reuse_lab=True)
        beam = remote_lab_fixture("fresh.yml", name="beam", scope="session")

        @pytest.fixture(scope="module")
        def connection(ring):
            pathlib.Path("open").mkdir()  # fails where one is open already
            yield ring[0]
            pathlib.Path("open").rmdir()
        """
    )
    suite = """
        import pathlib, pytest, time

        @pytest.mark.parametrize("n", range(4))
        def test_ring(connection, n):
            assert connection.name == "r1"
            time.sleep(0.02)
        def test_copy(copy): assert not pathlib.Path("open").exists() or len(copy) == 1
        def test_beam(beam): assert [device.name for device in beam] == ["r1", "r2"]
        def test_plain(): pass
        """
    online.makepyfile(test_one=suite, test_two=suite)
    result = online.runpytest_subprocess(*options)
    result.assert_outcomes(passed=14)
    assert ups(lab_server) == 2 if not options else ups(lab_server) <= 3
