"""A preloaded netlab: it behaves as a newly started one, which runs the command if preloading fails."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from neops_remote_lab.netlab.process import LAB_ID_VARIABLE, PreloadedNetlab, run_netlab
from tests.fakes import FakeNetlab, install_fake_netlab, wait_until

REPORTER = f"""\
import json, os, sys
VERSION = 1
def main():
    report = {{"pid": os.getpid(), "directory": os.getcwd(), "argv": sys.argv, "path": sys.path, "version": VERSION}}
    report.update(lab=os.environ.get({LAB_ID_VARIABLE!r}), answer=sys.stdin.read())
    print(json.dumps(report))
    print("a warning", file=sys.stderr)
    return 3 if "fail" in sys.argv else 0
"""
"""A replacement for netlab's commands that prints its process id, its arguments and its environment."""


@pytest.fixture
def host(tmp_path: Path) -> FakeNetlab:
    fake = install_fake_netlab(tmp_path / "host")
    commands(fake).write_text(REPORTER)
    return fake


Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """The processes that the test has started."""
    before = set(psutil.Process().children())
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture
def preloaded(host: FakeNetlab, children: Children) -> Iterator[PreloadedNetlab]:
    made = PreloadedNetlab(str(host.bin / "netlab"))
    yield made
    made.close()
    assert children() == []


def commands(host: FakeNetlab) -> Path:
    [path] = host.root.glob("netlab-environment/lib/*/site-packages/netsim/cli/__init__.py")
    return path


def loaded(children: Children) -> psutil.Process:
    """The process of the preloaded netlab, once it waits for a command."""
    [process] = children()
    wait_until(lambda: process.status() == psutil.STATUS_SLEEPING and is_reading(process))
    return process


def is_reading(process: psutil.Process) -> bool:
    """Whether a process is blocked in reading its standard input."""
    # the number of the system call, and its first argument: `read` of descriptor 0
    return Path(f"/proc/{process.pid}/syscall").read_text().split()[:2] == ["0", "0x0"]


def up(host: FakeNetlab, preloaded: PreloadedNetlab | None, directory: Path, *words: str) -> dict[str, Any]:
    """Run the replacement of `netlab up`. Returns its report."""
    log = directory / "log"
    log.write_text("before\n")
    command = str(host.bin / "netlab")
    options = {"command": command, "lab_id": "lab-1", "answer": "y\n", "log": log, "timeout": 30.0}
    assert run_netlab(["up", *words], directory=directory, preloaded=preloaded, **options) == ""  # type: ignore[arg-type]
    before, printed, warning = sorted(log.read_text().splitlines(), key=lambda line: line.startswith("a "))
    assert (before, warning) == ("before", "a warning")
    report: dict[str, Any] = json.loads(printed)
    return report


@pytest.mark.parametrize("options", [" -I", ""], ids=["isolated", "usual"])
def test_a_preloaded_netlab_gets_the_same_command_as_any_other(
    host: FakeNetlab, preloaded: PreloadedNetlab, children: Children, tmp_path: Path, options: str
) -> None:
    script = host.bin / "netlab"
    script.write_text(script.read_text().replace(" -I\n", f"{options}\n"))
    expected = up(host, None, tmp_path, "a b", "--snapshot")
    preloaded.load()
    waiting = loaded(children)
    report = up(host, preloaded, tmp_path, "a b", "--snapshot")
    assert report.pop("pid") == waiting.pid != expected.pop("pid")
    assert report == expected
    assert expected["answer"] == "y\n"
    assert expected["lab"] == "lab-1"


def test_a_preloaded_netlab_runs_one_command_and_the_next_one_is_loaded_on_request(
    host: FakeNetlab, preloaded: PreloadedNetlab, children: Children, tmp_path: Path
) -> None:
    preloaded.load()
    preloaded.load()
    first = loaded(children).pid
    assert up(host, preloaded, tmp_path)["pid"] == first
    assert children() == []
    assert up(host, preloaded, tmp_path)["pid"] != first
    preloaded.load()
    assert up(host, preloaded, tmp_path)["pid"] not in {first, None}


def test_a_failure_of_a_preloaded_netlab_is_reported_like_any_other(
    host: FakeNetlab, preloaded: PreloadedNetlab, tmp_path: Path
) -> None:
    preloaded.load()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        up(host, preloaded, tmp_path, "fail")
    assert failed.value.returncode == 3
    assert "a warning" in failed.value.stderr
    assert failed.value.cmd == [str(host.bin / "netlab"), "up", "fail"]


def test_a_netlab_that_was_replaced_meanwhile_is_not_used(
    host: FakeNetlab, preloaded: PreloadedNetlab, children: Children, tmp_path: Path
) -> None:
    preloaded.load()
    waiting = loaded(children)
    draft = tmp_path / "draft"
    draft.write_text(REPORTER.replace("VERSION = 1", "VERSION = 22"))
    draft.replace(commands(host))
    report = up(host, preloaded, tmp_path)
    assert (report["version"], report["pid"]) == (22, waiting.pid)


def test_a_preloaded_netlab_that_has_ended_is_replaced_by_a_normal_start(
    host: FakeNetlab, preloaded: PreloadedNetlab, children: Children, tmp_path: Path
) -> None:
    preloaded.load()
    waiting = loaded(children)
    waiting.kill()
    wait_until(lambda: waiting.status() == psutil.STATUS_ZOMBIE)
    assert up(host, preloaded, tmp_path)["pid"] != waiting.pid


def test_a_netlab_that_cannot_be_preloaded_is_started_normally(
    host: FakeNetlab, preloaded: PreloadedNetlab, tmp_path: Path
) -> None:
    (commands(host).parent / "up.py").write_text("raise ImportError('a netlab with other modules')")
    preloaded.load()
    assert up(host, preloaded, tmp_path)["version"] == 1


SCRIPTS = {
    "a shell script": "#!/bin/sh\n# starts netsim\necho $0 $*\n",
    "a Python script of another kind": "#!/usr/bin/env python3\nimport sys; print(*sys.argv)\n",
    "a script without an interpreter": "echo netsim python3\n",
    "a binary": "\x7fELF 'netsim\n",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_only_a_python_script_of_netlab_is_preloaded(tmp_path: Path, text: str) -> None:
    script = tmp_path / "netlab"
    script.write_text(text)
    script.chmod(0o755)
    preloaded = PreloadedNetlab(str(script))
    preloaded.load()
    assert preloaded.take() is None
    if text.startswith("#!"):
        log = tmp_path / "log"
        run_netlab(["up"], directory=tmp_path, timeout=30, command=str(script), log=log, preloaded=preloaded)
        assert log.read_text() == f"{script} up\n"


def test_preloading_without_netlab_does_not_fail(tmp_path: Path) -> None:
    preloaded = PreloadedNetlab(str(tmp_path / "netlab"))
    preloaded.load()
    assert preloaded.take() is None


def test_an_unreadable_netlab_is_not_preloaded(host: FakeNetlab, tmp_path: Path) -> None:
    directory = host.bin / "netlab"
    preloaded = PreloadedNetlab(str(directory))
    directory.unlink()
    directory.symlink_to(directory)
    preloaded.load()
    assert preloaded.take() is None


def test_a_preloaded_netlab_ends_with_its_parent(host: FakeNetlab) -> None:
    preloaded = PreloadedNetlab(str(host.bin / "netlab"))
    preloaded.load()
    waiting = preloaded.take()
    assert waiting is not None
    assert waiting.stdin is not None
    waiting.stdin.close()
    assert waiting.wait(10) == 0


def test_a_closed_preloader_loads_nothing(host: FakeNetlab, preloaded: PreloadedNetlab, children: Children) -> None:
    preloaded.load()
    waiting = loaded(children)
    preloaded.close()
    assert not waiting.is_running()
    preloaded.load()
    assert children() == []
    assert preloaded.take() is None
