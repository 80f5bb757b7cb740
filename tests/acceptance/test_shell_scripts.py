"""The shell scripts of the documentation and of deploy/, run word by word against a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.shell import ask, queue, sql
from tests.documents import PAGES, ROOT, blocks, file_of
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, free_port

WITH_LAB = file_of("docs/http.md", "with-lab.sh")
SOON = 10.0
"""Seconds for steps that take at most two, with a margin for a busy machine. The script would wait for at least 25."""

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")


@contextmanager
def with_lab(
    directory: Path, url: str, *command: str, topology: str = topology_text(2), patience: int = 60
) -> Iterator[subprocess.Popen[str]]:
    """The script of the HTTP page, started in a process group of its own as a terminal does."""
    directory.joinpath("with-lab.sh").write_text(WITH_LAB, encoding="utf-8")
    directory.joinpath("lab.yml").write_text(topology, encoding="utf-8")
    with subprocess.Popen(
        ["bash", "with-lab.sh", "lab.yml", *command],
        cwd=directory,
        env={**os.environ, "REMOTE_LAB_URL": url, "PATIENCE": str(patience)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@needs_curl
@pytest.mark.parametrize("status", [0, 7])
def test_the_script_runs_a_command_while_the_lab_is_up(lab_server: LabServer, tmp_path: Path, status: int) -> None:
    with with_lab(tmp_path, f"{lab_server.url}/", "sh", "-c", f'cat "$LAB_DEVICES"; exit {status}') as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert [device["name"] for device in json.loads(output)["devices"]] == ["r1", "r2"]
    assert queue(lab_server)["length"] == 0
    wait_until(lab_server.is_clean)


@needs_curl
def test_the_script_says_who_holds_the_lab_and_waits(lab_server: LabServer, tmp_path: Path) -> None:
    holder = lab_server.join(client="ann@laptop")
    with with_lab(tmp_path, lab_server.url, "echo", "up") as process:
        wait_until(lambda: queue(lab_server)["length"] == 2)
        ask(lab_server, holder, "DELETE", f"/session/{holder}")
        assert process.communicate(timeout=60)[0] == "up\n"
    assert process.returncode == 0


@needs_curl
def test_the_script_stops_when_its_session_is_ended_while_it_waits(lab_server: LabServer, tmp_path: Path) -> None:
    lab_server.join()
    with with_lab(tmp_path, lab_server.url, "true") as process:
        wait_until(lambda: queue(lab_server)["length"] == 2)
        sql(
            lab_server.database,
            "UPDATE session SET state = 'ended', end_detail = 'the host is needed' WHERE state = 'waiting'",
        )
        errors = process.communicate(timeout=SOON)[1]
    assert "HTTP 410: " in errors
    assert "the host is needed" in errors
    assert process.returncode == 1


@needs_curl
def test_the_script_retries_an_unreachable_server_for_a_limited_time(tmp_path: Path) -> None:
    with with_lab(tmp_path, f"http://127.0.0.1:{free_port()}", "true", patience=3) as process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "trying again for 3 s" in errors
    assert "onnect" in errors.splitlines()[-1]


@needs_curl
@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (topology_text(fail="start"), "HTTP 500: netlab failed to start the lab: exit status 1"),
        ("provider: clab\nnodes: [a]\n", "HTTP 422: "),
    ],
)
def test_the_script_shows_the_message_of_netlab(
    lab_server: LabServer, tmp_path: Path, topology: str, message: str
) -> None:
    with with_lab(tmp_path, lab_server.url, "true", topology=topology) as process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert message in errors
    assert "\\n" not in errors
    wait_until(lambda: queue(lab_server)["length"] == 0 and lab_server.is_clean())


@needs_curl
@pytest.mark.parametrize("moment", ["waiting", "starting", "working"])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["script", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_script_leaves_the_queue_on_a_signal(
    lab_server: LabServer, tmp_path: Path, moment: str, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    topology = topology_text(2, hang="start") if moment == "starting" else topology_text(2)
    others = [lab_server.join()] if moment == "waiting" else []
    with with_lab(tmp_path, lab_server.url, "sh", "-c", "touch working; exec sleep 600", topology=topology) as process:
        assert process.stderr is not None
        assert "in the queue" in process.stderr.readline()
        if moment == "starting":
            wait_until(lab_server.fake.containers, 30)
        if moment == "working":
            wait_until(tmp_path.joinpath("working").exists, 30)
        send(process.pid, number)
        assert process.wait(SOON) == 128 + number
    assert queue(lab_server)["length"] == len(others)
    wait_until(lab_server.is_clean, 20)


@needs_curl
def test_the_script_refuses_a_topology_that_cannot_be_read(tmp_path: Path) -> None:
    tmp_path.joinpath("with-lab.sh").write_text(WITH_LAB, encoding="utf-8")
    environment = {**os.environ, "REMOTE_LAB_URL": f"http://127.0.0.1:{free_port()}"}
    done = subprocess.run(
        ["bash", "with-lab.sh", "no.yml", "true"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == b"no.yml cannot be read\n"


SCRIPTS = {
    **{str(path.relative_to(ROOT)): path.read_text() for path in [*ROOT.glob("deploy/*.sh"), ROOT / ".ci" / "run"]},
    **{str(block): block.text for page in PAGES for block in blocks(page) if block.language == "bash"},
}


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed on this machine")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_passes_the_linter(name: str) -> None:
    checked = subprocess.run(
        ["shellcheck", "--shell=bash", "-"], input=SCRIPTS[name], capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""
