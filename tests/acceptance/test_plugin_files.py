"""The pytest plugin as a user sees it: topologies of more than one file."""

from __future__ import annotations

import pytest

from tests.fakes import topology_text, wait_until
from tests.plugin import finish, other_session, start, ups
from tests.server import LabServer, labs_in

CONFTEST = """
from neops_remote_lab.testing.fixture import remote_lab_fixture

ring = remote_lab_fixture("labs/ring.yml", reuse_lab=True, extra_files=["templates", "*.sh"])
whole = remote_lab_fixture("labs/ring.yml", name="whole", reuse_lab=True, extra_files=["."])
plain = remote_lab_fixture("labs/ring.yml", name="plain", reuse_lab=True)
"""


@pytest.fixture
def directory(project: pytest.Pytester) -> pytest.Pytester:
    """A project with a topology and its extra files in a separate directory."""
    files = {
        "ring.yml": topology_text(nodes=1),
        "templates/bgp/frr.j2": "router bgp {{ bgp.as }}",
        "start.sh": "#!/bin/sh\n",
        "clab.yml": "of netlab",
    }
    for name, text in files.items():
        path = project.path / "labs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project.path.joinpath("labs/start.sh").chmod(0o755)
    project.makeconftest(CONFTEST)
    return project


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("options", [[], ["-p", "xdist", "-n", "2"]], ids=["alone", "xdist"])
def test_fixtures_with_the_same_extra_files_share_a_lab_that_has_them(
    directory: pytest.Pytester, lab_server: LabServer, options: list[str]
) -> None:
    directory.makepyfile(
        f"""
        import os, pathlib, pytest

        def files():
            [lab] = [path for path in pathlib.Path({str(lab_server.work_dir)!r}).glob("*/lab") if path.is_dir()]
            names = ("templates/bgp/frr.j2", "start.sh")
            return [name for name in names if (lab / name).exists()], os.access(lab / "start.sh", os.X_OK)

        @pytest.mark.parametrize("n", range(3))
        def test_ring(ring, n): assert files() == (["templates/bgp/frr.j2", "start.sh"], True)
        @pytest.mark.parametrize("n", range(3))
        def test_plain(plain, n): assert files() == ([], False)
        @pytest.mark.parametrize("n", range(3))
        def test_whole(whole, n): assert files() == (["templates/bgp/frr.j2", "start.sh"], True)
        """
    )
    directory.runpytest_subprocess(*options).assert_outcomes(passed=9)
    assert ups(lab_server) == 2


@pytest.mark.usefixtures("online")
def test_a_topology_is_checked_with_its_files_while_the_run_waits(
    directory: pytest.Pytester, lab_server: LabServer
) -> None:
    directory.makepyfile("def test_1(ring): pass")
    with other_session(lab_server):
        process = start(directory)
        prepared = lab_server.work_dir
        wait_until(lambda: [name for name in labs_in(prepared) if (prepared / name / "lab/start.sh").exists()], 30)
    assert "1 passed" in finish(process)


@pytest.mark.usefixtures("online")
def test_files_are_read_when_the_lab_is_acquired(directory: pytest.Pytester, lab_server: LabServer) -> None:
    directory.makepyfile(
        f"""
        import pathlib, pytest

        @pytest.fixture(scope="session", autouse=True)
        def rendered(): pathlib.Path("labs/templates/late.j2").write_text("late")

        def test_1(ring): assert list(pathlib.Path({str(lab_server.work_dir)!r}).glob("*/lab/templates/late.j2"))
        """
    )
    directory.runpytest_subprocess().assert_outcomes(passed=1)


@pytest.mark.usefixtures("online")
def test_a_file_that_is_missing_at_the_acquire_is_one_clear_message(directory: pytest.Pytester) -> None:
    directory.makepyfile(
        """
        import pathlib, pytest

        @pytest.fixture(scope="session", autouse=True)
        def removed(): pathlib.Path("labs/start.sh").unlink()

        def test_1(ring): pass
        """
    )
    result = directory.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["remote lab ring: no extra file matches '[*].sh'*"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["missing.j2"], "FileNotFoundError: there is no extra file 'missing.j2' in the topology's directory *labs"),
        (
            ["missing/*.j2"],
            "FileNotFoundError: no extra file matches 'missing/[*].j2' in the topology's *labs",
        ),
        (["../conftest.py"], "ValueError: the extra file '../conftest.py' is not in the topology's directory *labs"),
        (["clab.yml"], "ValueError: the extra file 'clab.yml' cannot be sent: netlab writes *"),
        ("templates", "TypeError: extra_files must be a sequence of paths, such as [[]'templates']"),
    ],
)
def test_a_file_that_cannot_be_sent_fails_at_the_definition_of_the_fixture(
    directory: pytest.Pytester, entries: object, message: str
) -> None:
    directory.makeconftest(
        "from neops_remote_lab.testing.fixture import remote_lab_fixture\n"
        f"ring = remote_lab_fixture('labs/ring.yml', extra_files={entries!r})\n"
    )
    directory.makepyfile("def test_plain(): pass")
    result = directory.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}"])
