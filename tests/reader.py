"""Runs the commands of a documentation page in order, and compares their output with the page."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

from tests.documents import ROOT, Block, blocks
from tests.fakes import wait_until
from tests.server import free_port

INSTALL_TIMEOUT = 600
COMMAND_TIMEOUT = 300
NO_INDEX = re.compile(r"No matching distribution|Connection|unreachable|Temporary failure|timed out", re.IGNORECASE)
SERVER = re.compile(r"^(venv/bin/)?neops-remote-lab --(?!version|help)")
SQL_PROMPT = "sqlite> "
ASSIGNMENT = re.compile(r"^(?:export )?(?P<name>[A-Z_]+)=(?P<value>\S+)$")
ACTIVATION = "source venv/bin/activate"


def matches(shown: str, output: str) -> bool:
    """Whether output matches the page: JSON with the same keys, or the same words. `…` matches anything."""
    if not shown:
        return True
    if shown.startswith(("{", "[")):
        example = json.loads(shown.replace("{…}", "{}").replace(", …]", "]").replace("[…]", "[]"))
        return same_keys(example, json.loads(output))
    words = [re.escape(word).replace("…", ".*?") for word in shown.split()]
    return re.search(r"\s*".join(words), output, re.DOTALL) is not None


def same_keys(example: object, answer: object) -> bool:
    """Whether JSON has the keys of an example. Empty objects and lists of the example match anything."""
    if isinstance(example, dict) and example:
        return (
            isinstance(answer, dict)
            and list(example) == list(answer)
            and all(same_keys(value, answer[key]) for key, value in example.items())
        )
    if isinstance(example, list) and example:
        return isinstance(answer, list) and bool(answer) and same_keys(example[0], answer[0])
    return True


@dataclass
class Reader:
    """The directory, the environment and the server of a user who follows a page."""

    directory: Path
    environment: dict[str, str]
    lab_host: str
    server: subprocess.Popen[bytes] | None = None
    commands: list[str] = field(default_factory=list)
    printed: str = ""

    def run_page(self, page: str) -> None:
        """Write each file and run each command of a page, except blocks that are marked as not to be run."""
        for block in blocks(ROOT / page):
            if not block.not_run:
                self.run_block(block)

    def run_block(self, block: Block) -> None:
        if block.file:
            path = self.directory / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.localize(block.text), encoding="utf-8")
        elif block.language == "console":
            for command, shown in block.commands():
                self.run_command(self.localize(command), shown)
        elif block.language == "python":
            self.run([self.program("python"), "-c", self.localize(block.text)], str(block))

    def localize(self, text: str) -> str:
        """The text with the address of the test server instead of the one in the documentation."""
        return text.replace("lab-host:8000", self.lab_host)

    def program(self, name: str) -> str:
        own = self.directory / "venv" / "bin" / name
        return str(own) if own.exists() else sys.executable if name == "python" else name

    def run_command(self, command: str, shown: str) -> None:
        self.commands.append(command)
        if assigned := ASSIGNMENT.match(command):
            self.environment[assigned["name"]] = assigned["value"]
        elif command == ACTIVATION:
            own = str(self.directory / "venv" / "bin")
            self.environment["PATH"] = os.pathsep.join([own, self.environment["PATH"]])
        elif SERVER.match(command):
            self.start(command)
        elif shown.startswith(SQL_PROMPT):
            typed = [line.removeprefix(SQL_PROMPT) for line in shown.splitlines()]
            self.printed = self.run(["bash", "-c", f"{command} -bail"], command, "\n".join(typed))
        else:
            self.printed = self.run(["bash", "-o", "pipefail", "-c", command], command)
            assert matches(shown, self.printed), f"{command} printed {self.printed!r}, not {shown!r}"

    def run(self, argv: list[str], what: str, typed: str = "") -> str:
        installs = "pip install" in what
        done = subprocess.run(
            argv,
            cwd=self.directory,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT if installs else COMMAND_TIMEOUT,
            check=False,
        )
        if installs and done.returncode and NO_INDEX.search(done.stderr):
            pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, f"{what}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def start(self, command: str) -> None:
        """Start the server in the background, and wait until it can start a lab."""
        log = self.directory / "server.log"
        with log.open("ab") as output:
            self.server = subprocess.Popen(
                shlex.split(command),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(self.is_ready, 60, f"the server is not ready: {log}")

    def is_ready(self) -> bool:
        assert self.server is not None
        log = (self.directory / "server.log").read_text()
        assert self.server.poll() is None, log[-4000:]
        try:
            answer = httpx.get(f"http://{self.lab_host}/readyz", timeout=30)
        except httpx.TransportError:
            return False
        assert answer.status_code == 200, f"{answer.text}\n{log[-4000:]}"
        return True

    def close(self) -> None:
        if self.server:
            self.server.terminate()
            self.server.wait(120)


@contextmanager
def reader(directory: Path, **environment: str) -> Iterator[Reader]:
    """A user whose home directory contains only a copy of `~/.netlab.yml`, for the images of devices.

    The environment contains neither this checkout nor its virtual environment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / "home"
    home.mkdir(exist_ok=True)
    defaults = Path.home() / ".netlab.yml"
    if defaults.exists():
        shutil.copy(defaults, home)
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_", "XDG_"))
    }
    inherited.pop("VIRTUAL_ENV", None)
    outside = [
        entry
        for entry in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if entry != str(Path(sys.executable).parent)
    ]
    port = free_port()
    user = Reader(
        directory,
        {
            **inherited,
            "HOME": str(home),
            "PATH": os.pathsep.join(outside),
            "NEOPS_REMOTE_LAB_PORT": str(port),
            "NEOPS_REMOTE_LAB_LOCK_DIR": str(directory / "locks"),
            **environment,
        },
        f"127.0.0.1:{port}",
    )
    try:
        yield user
    finally:
        user.close()


def build_wheel(directory: Path) -> dict[str, str]:
    """Build a wheel of this checkout. Returns variables with which `pip install neops-remote-lab` installs it.

    Other packages come from the package index that this machine uses.
    """
    with FileLock(directory.with_suffix(".lock")):
        if not list(directory.glob("*.whl")):
            built = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
            subprocess.run([*built, "--wheel-dir", str(directory), str(ROOT)], check=True, timeout=INSTALL_TIMEOUT)
    (wheel,) = directory.glob("*.whl")
    constraints = directory / "constraints.txt"
    constraints.write_text(f"neops-remote-lab=={wheel.name.split('-')[1]}\n", encoding="utf-8")
    places = f"{directory} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    return {"PIP_FIND_LINKS": places, "PIP_CONSTRAINT": str(constraints), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
