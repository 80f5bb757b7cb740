"""Commands in devices: output, limits and termination, on a fake Docker that runs real programs."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from neops_remote_lab.models import ExecResponseDto
from neops_remote_lab.netlab.node_commands import MARK_VARIABLE
from tests.fakes import topology_text, wait_until
from tests.server import LabServer, running_server

LAST = {"sleep 300": "300", "stubborn": "301", "in a session of its own": "302"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    with running_server(
        tmp_path_factory.mktemp("server"), exec_threads="2", max_exec_output_bytes="1000", kill_grace="0.5"
    ) as running:
        yield running


@contextmanager
def session_with_lab(server: LabServer) -> Iterator[str]:
    """The active session, with a lab of two routers."""
    session = server.join()
    assert server.acquire(session, topology_text(2)).status_code == 200
    yield session
    httpx.delete(f"{server.url}/session/{session}")
    wait_until(server.is_clean, 20, "the lab is not torn down")


@pytest.fixture
def session(server: LabServer) -> Iterator[str]:
    with session_with_lab(server) as session:
        yield session


def execute(server: LabServer, session: str, node: str = "r1", **body: Any) -> httpx.Response:
    with server.client(session) as client:
        return client.post(f"/lab/devices/{node}/exec", json=body)


def container_file(server: LabServer, node: str) -> Path:
    """The file with the fake Docker's data about a node's container."""
    (found,) = (path for path in server.fake.state.glob("containers/*.json") if f'-{node}"' in path.read_text())
    return found


def marked(server: LabServer, *words: str) -> list[psutil.Process]:
    """Processes in the nodes of a server whose command line contains these words."""
    found, programs = [], str(server.fake.state / "programs")
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            ours = MARK_VARIABLE in environment and programs in environment["PATH"].split(":")
            if ours and set(words) <= set(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_string_is_run_by_the_shell_of_the_node(server: LabServer, session: str) -> None:
    answer = execute(server, session, command="echo out; echo err >&2; exit 3")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"exit_status": 3, "stdout": "out\n", "stderr": "err\n", "truncated": False}


def test_a_string_that_begins_with_a_hyphen_is_no_option_of_the_shell(server: LabServer, session: str) -> None:
    answer = execute(server, session, command="-n; echo out").json()
    assert (answer["stdout"], "-n: not found" in answer["stderr"]) == ("out\n", True)


def test_a_list_is_a_program_with_its_arguments_unchanged(server: LabServer, session: str) -> None:
    words = ["printf", "%s|", "$HOME", "a b", "--", "-x", "", "';&", "\n", "é"]
    assert execute(server, session, command=words).json()["stdout"] == "$HOME|a b|--|-x||';&|\n|é|"


def test_the_command_of_a_router_runs(server: LabServer, session: str) -> None:
    shown = execute(server, session, "r2", command=["vtysh", "-c", "show running-config"]).json()
    assert (shown["exit_status"], "hostname r2" in shown["stdout"]) == (0, True)


LONG = {
    "text": ("seq 100000", "".join(f"{number}\n" for number in range(1, 100_001)).encode()),
    "escapes": ("head -c 400000 /dev/zero | tr '\\0' '<'", b"<" * 400_000),
    "controls": ("head -c 400000 /dev/zero", bytes(400_000)),
    "letters": ("for i in $(seq 9000); do printf '\\303\\251\\360\\237\\230\\200'; done", "é😀".encode() * 9000),
    "no UTF-8": ("head -c 400001 /dev/zero | tr '\\0' '\\377'", b"\xff" * 400_001),
}


@pytest.mark.parametrize(("command", "printed"), LONG.values(), ids=LONG)
def test_long_outputs_are_complete(tmp_path: Path, command: str, printed: bytes) -> None:
    with running_server(tmp_path) as server:
        session = server.join()
        assert server.acquire(session, topology_text(1)).status_code == 200
        answer = execute(server, session, command=f"{{ {command}; }} | tee /dev/stderr")
        assert answer.headers["Content-Type"] == "application/json"
        found = ExecResponseDto.model_validate_json(answer.content)
        assert (found.exit_status, found.truncated) == (0, False)
        for text, encoded in ((found.stdout, found.stdout_base64), (found.stderr, found.stderr_base64)):
            assert (base64.b64decode(encoded) if encoded else str(text).encode()) == printed
        assert not {b"<", b">", b"&"} & {bytes([byte]) for byte in answer.content}


@pytest.mark.parametrize("field", ["stdin", "stdin_base64"])
def test_standard_input_is_passed_on_and_closed(server: LabServer, session: str, field: str) -> None:
    text = "a\nb\n" * 100
    given = text if field == "stdin" else base64.b64encode(text.encode()).decode()
    assert execute(server, session, command=["cat"], **{field: given}).json()["stdout"] == text
    assert execute(server, session, command=["cat"]).json()["stdout"] == ""


def test_megabytes_of_input_are_accepted_and_a_command_may_leave_them_unread(server: LabServer, session: str) -> None:
    text = "x" * (3 << 20)
    assert execute(server, session, command="wc -c", stdin=text).json()["stdout"].strip() == str(len(text))
    assert execute(server, session, command="exit 4", stdin=text).json()["exit_status"] == 4


def test_output_that_is_not_utf_8_is_base64(server: LabServer, session: str) -> None:
    answer = execute(server, session, command=r"printf '\377\000\001'; printf 'e\342\202\254' >&2").json()
    assert base64.b64decode(answer["stdout_base64"]) == b"\xff\x00\x01"
    assert "stdout" not in answer
    assert answer["stderr"] == "e€"


def test_output_beyond_the_limit_is_dropped_and_reported_as_truncated(server: LabServer, session: str) -> None:
    answer = execute(server, session, command="head -c 5000000 /dev/zero | tr '\\0' x; echo end >&2").json()
    assert (answer["stdout"], answer["stderr"], answer["truncated"]) == ("x" * 1000, "end\n", True)


def test_error_messages_of_the_shell_are_part_of_the_output(server: LabServer, session: str) -> None:
    execute(server, session, command="true")  # the first command makes the directory
    programs = server.fake.state / "programs"
    noisy = programs / "sh"
    noisy.write_text('#!/bin/sh\necho "sh: cannot change locale" >&2\nexec /bin/sh "$@"\n')
    noisy.chmod(0o755)
    try:
        answer = execute(server, session, command=["sh", "-c", "echo more >&2"]).json()
    finally:
        noisy.unlink()
    assert answer["stderr"] == "sh: cannot change locale\nsh: cannot change locale\nmore\n"


@pytest.mark.parametrize("command", LAST.values(), ids=LAST)
def test_a_command_that_takes_too_long_is_ended_with_its_child_processes(
    server: LabServer, session: str, command: str
) -> None:
    scripts = {
        "300": "sleep 300",
        "301": "trap '' TERM; sleep 301 & sleep 301",
        "302": "setsid sleep 302 & wait",
    }
    began = time.monotonic()
    answer = execute(server, session, command=scripts[command], timeout=1)
    assert answer.status_code == 408
    assert answer.json()["detail"] == "the command did not end within 1 s, and was ended"
    assert time.monotonic() - began < 10
    assert marked(server, "sleep", command) == []


def test_a_client_that_disconnects_ends_its_command(server: LabServer, session: str) -> None:
    with server.client(session) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/lab/devices/r1/exec", json={"command": "sleep 310"}, timeout=httpx.Timeout(10, read=1))
    wait_until(lambda: not marked(server, "sleep", "310"), 10, "the command goes on")


def test_the_end_of_the_lab_ends_commands(server: LabServer, session: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(execute, server, session, command="sleep 320")
        wait_until(lambda: marked(server, "sleep", "320"), 10, "the command does not begin")
        with server.client(session) as client:
            assert client.post("/lab/release").status_code == 204
        began = time.monotonic()
        answer = running.result(20)
    assert (answer.status_code, answer.json()["detail"]) == (404, "the lab has ended meanwhile")
    assert time.monotonic() - began < 5
    assert marked(server, "sleep", "320") == []


def test_the_end_of_the_server_ends_commands(tmp_path: Path) -> None:
    with running_server(tmp_path, on_exit="keep") as server, ThreadPoolExecutor(1) as pool:
        session = server.join()
        assert server.acquire(session, topology_text(1)).status_code == 200
        running = pool.submit(execute, server, session, command="sleep 330")
        wait_until(lambda: marked(server, "sleep", "330"), 10, "the command does not begin")
        assert server.stop() == 0
        answer = running.result(20)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert marked(server, "sleep", "330") == []
        server.start()
        with server.client(session) as client:
            client.delete("/lab")
        wait_until(server.is_clean, 20, "the lab is not torn down")


def test_commands_beyond_the_limit_wait_within_their_timeout(server: LabServer, session: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        long = [pool.submit(execute, server, session, command="sleep 1.5") for _ in range(2)]
        time.sleep(0.3)
        waits = pool.submit(execute, server, session, command="echo done")
        late = execute(server, session, command="echo never", timeout=0.2)
        assert late.status_code == 408
        assert waits.result(20).json()["stdout"] == "done\n"
        assert [answer.result(20).json()["exit_status"] for answer in long] == [0, 0]


def test_long_commands_do_not_use_up_the_threads_of_the_lab(server: LabServer, session: str) -> None:
    with ThreadPoolExecutor(2) as pool, server.client(session) as client:
        running = [pool.submit(execute, server, session, command="sleep 2") for _ in range(2)]
        time.sleep(0.2)
        assert client.get("/lab").json()["netlab_status"] == "started"
        assert client.get("/readyz").status_code == 200
        assert [answer.result(20).status_code for answer in running] == [200, 200]


def test_a_running_command_keeps_its_session_alive(tmp_path: Path) -> None:
    with running_server(tmp_path, active_timeout="1") as server:
        session = server.join()
        assert server.acquire(session, topology_text(1)).status_code == 200
        assert execute(server, session, command="sleep 3; echo here").json()["stdout"] == "here\n"
        assert server.status(session)["status"] == "active"


WRONG = {
    "nothing": ({}, "Field required"),
    "an empty command": ({"command": ""}, "at least 1 item"),
    "no words": ({"command": []}, "at least 1 item"),
    "a word that is none": ({"command": ["echo", 1]}, "valid string"),
    "U+0000": ({"command": "a\0b"}, "U+0000"),
    "an option in place of a program": ({"command": ["-c", "id"]}, "does not begin with a hyphen"),
    "a long command": ({"command": "x" * 100_000}, "longer than 98304 bytes"),
    "two inputs": ({"command": "x", "stdin": "", "stdin_base64": ""}, "exclude each other"),
    "an input that is not base64": ({"command": "x", "stdin_base64": "YW%J"}, "base64"),
    "an input that is no text": ({"command": "x", "stdin_base64": 5}, "valid string"),
    "no time": ({"command": "x", "timeout": 0}, "greater than 0"),
    "too much time": ({"command": "x", "timeout": 3601}, "--max-exec-timeout"),
    "an unknown field": ({"command": "x", "user": "root"}, "user"),
}


@pytest.mark.parametrize(("body", "says"), WRONG.values(), ids=WRONG)
def test_an_invalid_body_is_422(server: LabServer, session: str, body: dict[str, Any], says: str) -> None:
    answer = execute(server, session, **body)
    assert answer.status_code == 422, answer.text
    assert says in answer.text


def test_a_body_that_is_too_large_is_413(tmp_path: Path) -> None:
    with running_server(tmp_path, max_exec_request_bytes="2000") as server:
        assert execute(server, server.join(), command="cat", stdin="x" * 2000).status_code == 413


def test_a_call_without_a_lab_or_with_an_unknown_node_is_refused(server: LabServer, session: str) -> None:
    other = server.join()
    assert execute(server, other, command="id").status_code == 423
    assert execute(server, "unknown", command="id").status_code == 404
    for name in ("r9", "clab-r1", "..%2Fr1", "--help", "r1%00"):
        answer = execute(server, session, name, command="id")
        assert answer.status_code == 404, name
    with server.client(session) as client:
        client.delete("/lab")
    assert "no lab is running" in execute(server, session, command="id").json()["detail"]
    httpx.delete(f"{server.url}/session/{other}")


def test_a_stopped_node_is_reported_with_the_message_of_docker(server: LabServer, session: str) -> None:
    assert execute(server, session, command="true").status_code == 200
    path = container_file(server, "r1")
    path.write_text(path.read_text().replace('"state": "running"', '"state": "exited"'))
    answer = execute(server, session, command="true")
    assert answer.status_code == 500
    assert "the command could not be run in r1: exit status 1: Error response from daemon" in answer.json()["detail"]


def test_a_node_without_a_shell_is_501(server: LabServer, session: str) -> None:
    server.fake.control(no_shell=True)
    answer = execute(server, session, command=["true"])
    server.fake.control()
    assert (answer.status_code, "r1 has no shell" in answer.json()["detail"]) == (501, True)


def test_a_node_without_a_container_is_501(tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        session = server.join()
        assert server.acquire(session, topology_text(2, "external")).status_code == 200
        answer = execute(server, session, command="id")
        assert answer.status_code == 501
        assert "r1 is not a Docker container" in answer.json()["detail"]


def test_a_foreign_container_is_not_a_node(server: LabServer, session: str) -> None:
    """This holds even if its labels are those of this lab."""
    path = container_file(server, "r2")
    ours = path.read_text()
    path.write_text(ours.replace(str(server.work_dir), "/srv/somebody"))
    try:
        answer = execute(server, session, "r2", command="id")
        assert answer.status_code == 501
    finally:
        path.write_text(ours)
    assert execute(server, session, "r2", command="true").status_code == 200


def test_a_failed_query_of_docker_is_repeated(server: LabServer, session: str) -> None:
    server.fake.control(docker_unreachable=True)
    answer = execute(server, session, command="true")
    assert answer.status_code == 500
    assert "Docker could not list the nodes of the lab" in answer.json()["detail"]
    server.fake.control()
    assert execute(server, session, command="true").status_code == 200


def test_docker_is_queried_once_per_lab_for_concurrent_commands(tmp_path: Path) -> None:
    docker, asked = tmp_path / "docker", tmp_path / "asked"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{asked}\nexec {tmp_path}/fake/bin/docker "$@"\n')
    docker.chmod(0o755)
    with running_server(tmp_path, docker=str(docker)) as server, ThreadPoolExecutor(6) as pool:
        session = server.join()
        assert server.acquire(session, topology_text(2)).status_code == 200
        for _ in range(2):
            answers = [pool.submit(execute, server, session, command="true") for _ in range(6)]
            assert {answer.result(30).status_code for answer in answers} == {200}
        questions = [line for line in asked.read_text().splitlines() if line.startswith("inspect ")]
        assert len(questions) == 1
