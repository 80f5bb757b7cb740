"""The commands of the README, run in a fresh virtual environment with the real netlab."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from filelock import FileLock

from tests.documents import ROOT, blocks
from tests.fakes import REAL_NETLAB_LOCK, wait_until
from tests.reader import Reader, build_wheel, reader
from tests.server import RealNetlab, docker_problem

pytestmark = pytest.mark.timeout(1500)

SETUP, SUITE = "Set up a lab host", "Use it from pytest"
NO_LAB_HOST = docker_problem() or ("" if shutil.which("containerlab") else "containerlab is not installed")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A user who has set up a lab host as the README describes, and whose server runs."""
    directory = tmp_path_factory.mktemp("readme")
    containers = {"NEOPS_REMOTE_LAB_CONTAINERS": "no"} if NO_LAB_HOST else {}
    with reader(directory, **build_wheel(directory / "wheel"), **containers) as user:
        for block in blocks(ROOT / "README.md"):
            if block.heading == SETUP and not block.not_run:
                user.run_block(block)
        yield user


@pytest.mark.external
def test_the_server_is_ready_without_an_activated_environment(user: Reader) -> None:
    if shutil.which("netlab", path=user.environment["PATH"]):
        pytest.skip("this machine has another netlab on PATH, which the server takes")
    assert user.is_ready()


@pytest.mark.external
def test_the_example_without_devices_passes(user: Reader) -> None:
    shutil.copytree(ROOT / "examples" / "hosts", user.directory / "hosts")
    command = [user.program("pytest"), "-p", "no:cacheprovider", "hosts"]
    output = user.run(["env", f"REMOTE_LAB_URL=http://{user.lab_host}", *command], "examples/hosts")
    assert "3 passed" in output


@pytest.mark.external
def test_the_demo_passes(user: Reader) -> None:
    activated = f"{user.directory / 'venv' / 'bin'}:{user.environment['PATH']}"
    locks = user.directory / "locks-of-the-demo"
    settings = [f"PATH={activated}", f"NEOPS_REMOTE_LAB_LOCK_DIR={locks}"]
    command = [user.program("python"), str(ROOT / "examples" / "demo.py"), "--lab", "hosts"]
    assert "DONE" in user.run(["env", *settings, *command], "examples/demo.py")


@pytest.mark.netlab
@pytest.mark.skipif(bool(NO_LAB_HOST), reason=NO_LAB_HOST)
def test_the_suite_passes(user: Reader) -> None:
    activated = f"{user.directory / 'venv' / 'bin'}:{user.environment['PATH']}"
    client = Reader(user.directory, {**user.environment, "PATH": activated}, user.lab_host)
    with FileLock(REAL_NETLAB_LOCK):
        for block in blocks(ROOT / "README.md"):
            if block.heading == SUITE:
                client.run_block(block)
        wait_until(lambda: not RealNetlab().containers(), 120, "the lab is not torn down")
    assert client.commands == [f"REMOTE_LAB_URL=http://{user.lab_host} pytest"]


@pytest.mark.netlab
@pytest.mark.skipif(bool(NO_LAB_HOST), reason=NO_LAB_HOST)
def test_the_tutorial_leads_to_a_green_test(user: Reader) -> None:
    directory = user.directory / "tutorial"
    directory.mkdir()
    client = Reader(directory, dict(user.environment), user.lab_host)
    with FileLock(REAL_NETLAB_LOCK):
        client.run_page("docs/tutorial.md")
        wait_until(lambda: not RealNetlab().containers(), 120, "the lab is not torn down")
    assert [command for command in client.commands if command.startswith("pytest")]


@pytest.mark.external
@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 shell is not installed")
@pytest.mark.parametrize("page", ["docs/operating.md", "docs/sql.md"])
def test_the_commands_for_operators_work_beside_a_running_server(user: Reader, page: str) -> None:
    done = len(user.commands)
    user.run_page(page)
    assert len(user.commands) > done


def test_every_block_of_the_readme_is_run_above() -> None:
    left = [str(block) for block in blocks(ROOT / "README.md") if block.heading not in (SETUP, SUITE)]
    assert left == [str(block) for block in blocks(ROOT / "README.md") if block.not_run]
