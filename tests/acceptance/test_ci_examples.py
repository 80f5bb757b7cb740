"""The CI examples: their commands are run and cancelled as a CI runner does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from neops_remote_lab.testing.options import SETTINGS, variable
from tests.documents import ROOT
from tests.fakes import topology_text, wait_until
from tests.plugin import queue
from tests.reader import Reader, build_wheel, reader
from tests.server import LabServer, running_server

pytestmark = [pytest.mark.external, pytest.mark.timeout(900)]

EXAMPLES = ROOT / "examples" / "ci"
ACTIVE_TIMEOUT = 3
CONFTEST = """
from neops_remote_lab.testing.fixture import remote_lab_fixture
lab = remote_lab_fixture("lab.yml")
"""
TESTS = """
import pathlib, time
def test_blocks(lab):
    if pathlib.Path("block").exists():
        pathlib.Path("blocked").touch()
        time.sleep(120)
def test_fails(lab): assert not lab
"""


@dataclass
class Job:
    """A job of a CI system, on a runner whose Python is a fresh virtual environment."""

    name: str
    install: str
    test: str
    variables: dict[str, str]
    kept: list[str]
    shell: list[str]
    cancel: signal.Signals
    user: Reader = field(init=False)

    @property
    def directory(self) -> Path:
        return self.user.directory

    def start(self, server: LabServer) -> subprocess.Popen[bytes]:
        """Begin the step with the tests, in a process group of its own."""
        summary = {"GITHUB_STEP_SUMMARY": str(self.directory / "summary.md")} if self.name == "github" else {}
        environment = {**self.user.environment, **self.variables, **summary, "REMOTE_LAB_URL": server.url}
        script = self.directory / "step.sh"
        script.write_text(self.test, encoding="utf-8")
        command = [word.format(script=script) for word in self.shell]
        return subprocess.Popen(
            command, cwd=self.directory, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )


def github() -> Job:
    example = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text())
    [job] = example["jobs"].values()
    install, test = (step["run"] for step in job["steps"] if "run" in step)
    [upload] = (step["with"]["path"] for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    # a variable without a value is set, and empty
    variables = {name: re.sub(r"\$\{\{.*?\}\}", "", str(value)) for name, value in job["env"].items()}
    shell = ["bash", "-e", "{script}"]
    return Job("github", install, test, variables, upload.split(), shell, signal.SIGINT)


def gitlab() -> Job:
    example: dict[str, Any] = yaml.safe_load((EXAMPLES / "gitlab-ci.yml").read_text())
    [job] = example.values()
    kept = [*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]]
    shell = ["bash", "-c", "set -eo pipefail; : | eval \"$(cat '{script}')\""]
    install, test = ("\n".join(job[part]) for part in ("before_script", "script"))
    return Job("gitlab", install, test, job["variables"], kept, shell, signal.SIGTERM)


@pytest.fixture(scope="module")
def environments() -> dict[str, Path]:
    """Virtual environments by the commands that were run to install into them."""
    return {}


@pytest.fixture(scope="module", params=[github, gitlab], ids=["github", "gitlab"])
def job(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environments: dict[str, Path]
) -> Iterator[Job]:
    job: Job = request.param()
    directory = tmp_path_factory.mktemp(job.name)
    if job.install not in environments:
        environments[job.install] = directory / "python"
        subprocess.run([sys.executable, "-m", "venv", directory / "python"], check=True)
        index = build_wheel(directory / "wheel")
    else:  # the environment of another test with the same commands
        index = {}
    with reader(directory / "project", **index) as user:
        python = environments[job.install]
        user.environment["PATH"] = os.pathsep.join([str(python / "bin"), user.environment["PATH"]])
        job.user = user
        for name, text in {"conftest.py": CONFTEST, "test_lab.py": TESTS, "lab.yml": topology_text(1)}.items():
            (job.directory / name).write_text(text, encoding="utf-8")
        if index:
            user.run(["bash", "-e", "-c", job.install], f"pip install: {job.install}")
        yield job


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LabServer]:
    with running_server(tmp_path, active_timeout=str(ACTIVE_TIMEOUT)) as server:
        yield server


def test_the_variables_are_those_of_the_plugin(job: Job) -> None:
    assert set(job.variables) <= {variable(name) for name in SETTINGS}


def test_a_job_keeps_the_configured_files(job: Job, server: LabServer) -> None:
    (job.directory / "block").unlink(missing_ok=True)
    assert job.start(server).wait(120) == pytest.ExitCode.TESTS_FAILED
    assert [name for name in job.kept if not (job.directory / name).exists()] == []
    assert "2 lab tests" in (job.directory / "summary.md").read_text()
    [artifacts] = (job.directory / "remote-lab-artifacts").iterdir()
    assert "test_fails" in artifacts.name
    wait_until(server.is_clean, 20)


@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_a_cancelled_job_frees_the_lab(job: Job, server: LabServer, end: str) -> None:
    (job.directory / "block").touch()
    (job.directory / "blocked").unlink(missing_ok=True)
    process = job.start(server)
    try:
        wait_until((job.directory / "blocked").exists, 60)
        [session] = queue(server)
        assert session["status"] == "active"
        if end == "killed":
            os.killpg(process.pid, signal.SIGKILL)
        elif job.name == "github":  # the runner signals only the first process of a step
            process.send_signal(job.cancel)
        else:
            os.killpg(process.pid, job.cancel)
        wait_until(lambda: not queue(server), 5 if end == "cancelled" else ACTIVE_TIMEOUT + 10)
        wait_until(server.is_clean, 20)
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
