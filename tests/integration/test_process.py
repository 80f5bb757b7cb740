"""Running a command: time, memory, output, child processes and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from neops_remote_lab.netlab.logs import LEFT_OUT
from neops_remote_lab.netlab.output import TAIL_LINES, scrub, tail
from neops_remote_lab.netlab.process import LAB_ID_VARIABLE, find_command, run_netlab
from tests.chaos.shell import is_running
from tests.fakes import wait_until

LEADER_AND_CHILD = """
import os, signal, sys, time
child = os.fork()
if ("child" if child == 0 else "leader") in sys.argv[1:]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child == 0:
    open("child", "w").close()
else:
    while not os.path.exists("child"):
        time.sleep(0.01)
    open("pids", "w").write(f"{os.getpid()} {child}")
    os.rename("pids", "ready")
time.sleep(600)
"""
"""A process with a child. Those that an argument names ignore SIGTERM."""


def run(
    code: str, directory: Path, *arguments: str, timeout: float = 30, kill_grace: float = 0.2, **options: object
) -> str:
    """Run Python code instead of netlab."""
    words: Sequence[str] = ["-c", code, *arguments]
    return run_netlab(
        words,
        directory=directory,
        timeout=timeout,
        command=sys.executable,
        kill_grace=kill_grace,
        **options,  # type: ignore[arg-type]
    )


def pids(directory: Path) -> list[int]:
    ready = directory / "ready"
    wait_until(ready.exists)
    return [int(word) for word in ready.read_text().split()]


def test_a_command_has_its_directory_in_the_variable_of_the_shell(tmp_path: Path) -> None:
    assert run("import os; print(os.environ['PWD'])", tmp_path) == f"{tmp_path}\n"


# Timeouts and interrupts


@pytest.mark.parametrize("stubborn", [[], ["leader"], ["child"], ["leader", "child"]], ids=" and ".join)
def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path, stubborn: list[str]) -> None:
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        run(LEADER_AND_CHILD, tmp_path, *stubborn, timeout=0.7)
    assert expired.value.timeout == 0.7
    assert time.monotonic() - began < 10
    wait_until(lambda: not any(is_running(pid) for pid in pids(tmp_path)), 5)


def test_an_interrupt_ends_a_command_with_its_children(tmp_path: Path) -> None:
    interrupt = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, LEADER_AND_CHILD, tmp_path, "leader", "child", interrupt=interrupt)
        both = pids(tmp_path)
        interrupt.set()
        with pytest.raises(InterruptedError):
            running.result(10)
    wait_until(lambda: not any(is_running(pid) for pid in both), 5)


def test_an_interrupt_before_the_start_ends_the_command(tmp_path: Path) -> None:
    interrupt = threading.Event()
    interrupt.set()
    began = time.monotonic()
    with pytest.raises(InterruptedError):
        run(LEADER_AND_CHILD, tmp_path, interrupt=interrupt)
    assert time.monotonic() - began < 10


def test_a_command_gets_time_to_end_by_itself(tmp_path: Path) -> None:
    code = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path("ended").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
pathlib.Path("ready").touch()
time.sleep(600)
"""
    interrupt = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, code, tmp_path, kill_grace=30, interrupt=interrupt)
        wait_until((tmp_path / "ready").exists)
        interrupt.set()
        with pytest.raises(InterruptedError):
            running.result(10)
    assert (tmp_path / "ended").exists()


def test_a_second_ctrl_c_does_not_leave_a_command_running(tmp_path: Path) -> None:
    stubborn = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("asked").touch())
pathlib.Path("pid").write_text(str(os.getpid()))
os.rename("pid", "ready")
while True:
    time.sleep(600)
"""
    code = f"""
import pathlib, sys
from neops_remote_lab.netlab.process import run_netlab
run_netlab(["-c", {stubborn!r}], directory=pathlib.Path(), timeout=600, command=sys.executable, kill_grace=600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        [command] = pids(tmp_path)
        process.send_signal(signal.SIGINT)
        wait_until((tmp_path / "asked").exists)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].rstrip().endswith(b"KeyboardInterrupt")
    assert not is_running(command)


def test_the_end_of_a_command_is_noticed_at_once(tmp_path: Path) -> None:
    run("", tmp_path)
    began = time.monotonic()
    for _ in range(5):
        run("", tmp_path, timeout=600)
    assert time.monotonic() - began < 5


def test_no_thread_is_left_of_a_command(tmp_path: Path) -> None:
    before = threading.active_count()
    run("", tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time; time.sleep(600)", tmp_path, timeout=0.1)
    wait_until(lambda: threading.active_count() <= before)


def test_a_signal_to_our_group_does_not_reach_the_command(tmp_path: Path) -> None:
    assert run("import os; print(os.getpgid(0) == os.getpid())", tmp_path) == "True\n"


# Memory and output


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")
def test_a_command_over_its_memory_limit_fails_alone(tmp_path: Path) -> None:
    limit = 300 << 20
    code = "import sys; sys.stdin.read(); print(len(bytearray(600 << 20)))"  # the input is sent after the limit is set
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(code, tmp_path, memory=limit)
    assert "MemoryError" in failed.value.stderr
    assert run(code, tmp_path) == f"{600 << 20}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these limits")
def test_a_command_can_have_a_lower_priority(tmp_path: Path) -> None:
    code = "import os, sys; sys.stdin.read(); print(os.nice(0))"
    assert int(run(code, tmp_path, niceness=5)) == int(run(code, tmp_path)) + 5


def test_megabytes_of_output_do_not_block(tmp_path: Path) -> None:
    code = "import sys; sys.stdout.write('x' * 20_000_000); sys.stderr.write('y' * 20_000_000)"
    assert len(run(code, tmp_path)) == 20_000_000


def test_binary_output_does_not_fail_the_command(tmp_path: Path) -> None:
    assert run(r"import sys; sys.stdout.buffer.write(b'a\xffb')", tmp_path) == "a\ufffdb"


def test_output_that_a_child_keeps_open_does_not_delay_the_result(tmp_path: Path) -> None:
    code = """
import os, time
if os.fork():
    print(1)
else:
    open("child", "w").write(str(os.getpid()))
    time.sleep(600)
"""
    began = time.monotonic()
    try:
        assert run(code, tmp_path) == "1\n"
        assert time.monotonic() - began < 10
    finally:
        wait_until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text())
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_log_grows_while_the_command_runs_and_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "netlab.log"
    log.write_text("before\n")
    code = "import pathlib, sys, time\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n"
    code += "while not pathlib.Path('go').exists(): time.sleep(0.01)"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, code, tmp_path, log=log)
        wait_until(lambda: log.read_text() == "before\nout\nerr\n")
        (tmp_path / "go").touch()
        assert running.result(10) == ""


# Input, directory and environment


def test_standard_input_is_written_and_then_closed(tmp_path: Path) -> None:
    code = "import sys; print(repr(sys.stdin.read()))"
    assert run(code, tmp_path) == "''\n"
    assert run(code, tmp_path, answer="y\n") == "'y\\n'\n"


def test_a_command_that_does_not_read_its_input_does_not_fail(tmp_path: Path) -> None:
    assert run("import sys; sys.stdin.close(); print(1)", tmp_path, answer="y\n" * 100_000) == "1\n"


def test_a_command_runs_in_its_directory_and_is_marked_with_its_lab(tmp_path: Path) -> None:
    code = f"import os; print(os.getcwd(), os.environ[{LAB_ID_VARIABLE!r}], os.environ['CLAB_VERSION_CHECK'])"
    assert run(code, tmp_path, lab_id="lab-1").split() == [str(tmp_path.resolve()), "lab-1", "disable"]


def test_arguments_go_through_no_shell(tmp_path: Path) -> None:
    words = ["$HOME", "; touch x", "`id`", "a b", "*", "--", ""]
    assert run("import sys; print(sys.argv[1:])", tmp_path, *words) == f"{words}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_command_does_not_inherit_open_files(tmp_path: Path) -> None:
    with (tmp_path / "ours").open("w"):
        names = run("import os; print([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)])", tmp_path)
        found = run("import psutil; print([f.path for f in psutil.Process().open_files()])", tmp_path)
    assert str(tmp_path / "ours") not in names + found


def test_a_log_over_its_limit_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    log, limit = tmp_path / "log", 40_000
    code = """
import os, time
print("first", flush=True)
for _ in range(50): print("x" * 20_000, end="", flush=True)
print("\\nlast", flush=True)
open("printed", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
raise SystemExit("end")
"""

    def is_small() -> bool:
        return (tmp_path / "printed").exists() and log.stat().st_size < limit

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, code, tmp_path, log=log, max_log_bytes=limit)
        wait_until(is_small, 20, "the log stays large")
        (tmp_path / "go").touch()
        with pytest.raises(subprocess.CalledProcessError, match="exit status 1") as failed:
            running.result()
    assert failed.value.stderr.endswith("last\nend")
    text = log.read_bytes()
    assert text.startswith(b"first\n")
    assert LEFT_OUT in text
    assert text.endswith(b"last\nend\n")


def test_a_command_never_has_a_higher_priority_than_this_process(tmp_path: Path) -> None:
    """A server may itself have a low priority, and may not be allowed to raise that of a command."""
    # The input of the command ends after its limits are set.
    inner = "import os, sys; sys.stdin.read(); print(os.getpriority(os.PRIO_PROCESS, 0), flush=True)"
    outer = (
        "import os, pathlib, sys\n"
        "from neops_remote_lab.netlab.process import run_netlab\n"
        "os.nice(15)\n"
        "for niceness in (0, 3, 10):\n"
        f"    words = ['-c', {inner!r}]\n"
        "    output = run_netlab(words, directory=pathlib.Path('/'), timeout=30, command=sys.executable,\n"
        "                        niceness=niceness)\n"
        "    print(output.strip())\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", outer], check=True, capture_output=True, text=True, env=dict(os.environ)
    )
    own = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 15)
    assert [int(line) for line in shown.stdout.split()] == [min(19, own + niceness) for niceness in (0, 3, 10)]


def test_a_command_beside_this_python_is_found_with_the_programs_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "venv" / "bin"
    directory.mkdir(parents=True)
    for name, text in (("netlab", "exec helper"), ("helper", "echo found")):
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    assert find_command("netlab") == str(directory / "netlab")
    assert run_netlab([], directory=tmp_path, timeout=10) == "found\n"


# Failure


def test_a_missing_command_is_reported(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(FileNotFoundError):
        run_netlab(["up"], directory=tmp_path, timeout=5, command="no-such-netlab")
    assert psutil.Process().children() == before


def test_a_failure_has_the_exit_status_and_the_last_lines(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('why', file=sys.stderr); sys.exit(7)"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(code, tmp_path)
    assert (failed.value.returncode, failed.value.stderr) == (7, "why")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(code, tmp_path, log=tmp_path / "log")
    assert "why" in failed.value.stderr


def test_the_last_lines_are_those_of_this_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("an earlier message\n")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("import sys; sys.exit('now')", tmp_path, log=log)
    assert failed.value.stderr == "now"


def test_the_number_of_last_lines_is_limited(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(100_000): print('line', n, file=sys.stderr)\nsys.exit(1)"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(code, tmp_path)
    lines = failed.value.stderr.splitlines()
    assert len(lines) == TAIL_LINES
    assert lines[-1] == "line 99999"


TRACEBACK = """Creating configuration files
Traceback (most recent call last):
  File "/usr/lib/python3/netsim/cli/up.py", line 1, in run
    start()
    ~~~~~^^
  File "/usr/lib/python3/netsim/providers/clab.py", line 2, in start
    raise RuntimeError("no image")

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/usr/bin/netlab", line 8, in <module>
    main()
RuntimeError: no image in /var/lib/docker/images/frr.tar
"""


def test_the_last_lines_have_no_traceback_and_no_directory_of_the_host() -> None:
    words = tail(TRACEBACK)
    assert "RuntimeError: no image in frr.tar" in words
    assert "Creating configuration files" in words
    for hidden in ("Traceback", "File ", "/usr", "/var", "start()", "main()", "^^"):
        assert hidden not in words


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("cannot read /srv/labs/0f3a/topology/topology.yml: no", "cannot read topology.yml: no"),
        ("'/srv/labs/x.yml'", "'x.yml'"),
        ("in folder /srv/labs/0f3a/", "in folder "),
        ("file:/srv/labs/x.yml", "file:/srv/labs/x.yml"),
        ("see https://netlab.tools/install/ubuntu/ for more", "see https://netlab.tools/install/ubuntu/ for more"),
        ("interface 10.0.0.1/24, 2001:db8::/64 and 1/2", "interface 10.0.0.1/24, 2001:db8::/64 and 1/2"),
        ("image quay.io/frrouting/frr:10.5.1", "image quay.io/frrouting/frr:10.5.1"),
        ("group_vars/all/topology.json", "group_vars/all/topology.json"),
    ],
)
def test_only_directories_of_the_host_are_hidden(printed: str, shown: str) -> None:
    assert scrub(printed) == shown
