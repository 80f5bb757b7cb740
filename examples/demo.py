"""Two test runs share one lab host and leave nothing behind. `make demo` starts it.

It starts a server of its own on a free loopback port, runs the same example suite twice at the same time against it,
shows the queue while the second run waits, ends the server and looks for anything that is left. Where this machine has
Docker and containerlab the lab is made of FRR routers (examples/ospf), else it is an inventory without devices
(examples/hosts).
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx

from neops_remote_lab.netlab.ownership import RECORD

EXAMPLES = Path(__file__).resolve().parent
LABS = {"ospf": "three FRR routers in containers", "hosts": "an inventory of three hosts, without devices"}
PROBES = (["docker", "info"], ["containerlab", "version"])
START_SECONDS = 60
RUNS_SECONDS = 1200
STOP_SECONDS = 180

Program = subprocess.Popen[str]
begin = time.monotonic()


class DemoError(Exception):
    """The demo cannot continue; the message says why and what to do."""


def say(text: str) -> None:
    """Print a message of the demo, with the seconds since its start."""
    sys.stdout.write(f"demo    | {time.monotonic() - begin:5.1f} s  {text}\n")
    sys.stdout.flush()


def copy_lines(stream: IO[str], name: str, log: Path) -> None:
    """Show the output of one program line by line, and keep it."""
    with log.open("w") as kept:
        for line in stream:
            kept.write(line)
            kept.flush()
            sys.stdout.write(f"{name:<8}| {line.rstrip()}\n")
            sys.stdout.flush()


@contextmanager
def running(
    name: str, command: list[str], log: Path, farewell: signal.Signals = signal.SIGTERM, **options: Any
) -> Iterator[Program]:
    """A program that runs for as long as the block at most, its output shown and kept."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("environment", {})}
    process: Program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its programs in order
        **options,
    )
    reader = threading.Thread(target=copy_lines, args=(process.stdout, name, log), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        stop(process, farewell)
        reader.join(5)
        if process.stdout:
            process.stdout.close()


def stop(process: Program, farewell: signal.Signals = signal.SIGTERM) -> int:
    """End a program with SIGTERM, after a timeout with SIGKILL, and return its status."""
    if process.poll() is None:
        process.send_signal(farewell)
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def succeeds(command: list[str]) -> bool:
    """Whether a program is there and ends with status 0."""
    if shutil.which(command[0]) is None:
        return False
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def choose_lab(wish: str | None) -> str:
    """The example that this machine can run."""
    if shutil.which("netlab") is None:
        raise DemoError("netlab is not installed. Start the demo with `make demo`, which installs it")
    missing = [" ".join(probe) for probe in PROBES if wish != "hosts" and not succeeds(probe)]
    if not missing:
        return wish or "ospf"
    if wish:
        raise DemoError(f"`{missing[0]}` fails, and routers need it. `make demo DEMO=hosts` does without")
    say(f"`{missing[0]}` fails on this machine, so there are no routers to run")
    return "hosts"


def lab_containers() -> set[str]:
    """Containers of containerlab labs on this machine; none where there is no Docker."""
    if not succeeds(PROBES[0]):
        return set()
    command = ["docker", "ps", "--all", "--filter", "label=containerlab", "--format", "{{.Names}}"]
    return set(subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split())


def server_command(lab: str, directory: Path) -> list[str]:
    """A server whose files are apart from those of another server."""
    command = [sys.executable, "-m", "neops_remote_lab", "--host=127.0.0.1", "--port=0", "--on-exit=teardown"]
    command += [f"--database=sqlite+aiosqlite:///{directory / 'demo.sqlite3'}", f"--work-dir={directory / 'labs'}"]
    # Without containers the server must not ask for Docker, of which a part may be installed.
    return command if lab == "ospf" else [*command, "--containers=no"]


def wait_until_ready(server: Program, log: Path) -> str:
    """The server's address, from its log, once it says that it can take a lab."""
    deadline = time.monotonic() + START_SECONDS
    answer = "it has not named its address yet"
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoError(f"the server ended with status {server.returncode}; its last line says why and what to do")
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", log.read_text()) if log.exists() else None
        if found:
            ready = httpx.get(f"{found[0]}/readyz", timeout=10)
            if ready.status_code == httpx.codes.OK:
                return found[0]
            answer = ready.text
        time.sleep(0.2)
    raise DemoError(f"the server was not ready within {START_SECONDS} s: {answer}")


def describe(session: dict[str, Any]) -> str:
    """One session of the queue in a few words."""
    place = "holds the lab" if session["status"] == "active" else f"waits at position {session['position']}"
    who = session.get("client") or "unnamed"
    what = f", {session['topology']}" if session.get("topology") else ""
    return f"{session['session_id']} ({who}) {place}{what}"


def watch(url: str, runs: list[Program]) -> bool:
    """Show the queue whenever it changes, until the runs are over. True when one was seen to wait for another."""
    deadline = time.monotonic() + RUNS_SECONDS
    shown: list[str] = []
    waited = False
    while any(run.poll() is None for run in runs):
        if time.monotonic() > deadline:
            raise DemoError(f"the test runs were not over within {RUNS_SECONDS} s")
        sessions = httpx.get(f"{url}/queue", timeout=30).raise_for_status().json()["sessions"]
        lines = [describe(session) for session in sessions]
        if lines != shown:
            say("GET /queue: " + ("; ".join(lines) or "empty"))
            shown = lines
        waited = waited or {session["status"] for session in sessions} == {"active", "waiting"}
        time.sleep(0.3)
    return waited


def demonstrate(lab: str, directory: Path) -> None:
    """Server, two runs, end of the server, nothing left."""
    before = lab_containers()
    server_log = directory / "server.log"
    tests = [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:asyncio", "-p", "no:cacheprovider"]
    with running("server", server_command(lab, directory), server_log) as server:
        url = wait_until_ready(server, server_log)
        say(f"the server is ready at {url}; now two test runs start at the same time")
        options: dict[str, Any] = {"cwd": EXAMPLES / lab, "environment": {"REMOTE_LAB_URL": url}}
        options["farewell"] = signal.SIGINT  # on which pytest leaves the queue before it ends
        with (
            running("run 1", tests, directory / "run-1.log", **options) as first,
            running("run 2", tests, directory / "run-2.log", **options) as second,
        ):
            waited = watch(url, [first, second])
        if first.returncode or second.returncode:
            raise DemoError(f"the test runs ended with status {first.returncode} and {second.returncode}")
        if not waited:
            raise DemoError("neither run was seen to wait for the other")
        say("both runs passed, one after the other; SIGTERM to the server")
        status = stop(server)
    if status not in (0, -signal.SIGTERM):
        raise DemoError(f"the server ended with status {status}")
    left = sorted(lab_containers() - before) + [str(path.parent) for path in (directory / "labs").glob(f"*/{RECORD}")]
    if left:
        raise DemoError(f"left behind: {', '.join(left)}. `netlab down --cleanup` in that directory removes a lab")
    say("the server has ended; no container and no work directory is left")


def main() -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", choices=list(LABS), help="default: ospf where Docker and containerlab are, else hosts")
    wish = parser.parse_args().lab
    state = EXAMPLES.parent / ".demo"
    state.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="run-", dir=state))
    try:
        lab = choose_lab(wish)
        say(f"the lab is {LABS[lab]}: examples/{lab}")
        demonstrate(lab, directory)
    except (DemoError, httpx.HTTPError) as error:
        say(f"FAILED: {error}")
        say(f"All output is kept in {directory}")
        if wish is None:
            say("Where routers cannot start, for want of their image for instance, try `make demo DEMO=hosts`")
        return 1
    except KeyboardInterrupt:
        say(f"interrupted; all output is kept in {directory}")
        return 130
    shutil.rmtree(directory)
    say("DONE")
    return 0


if __name__ == "__main__":
    sys.exit(main())
