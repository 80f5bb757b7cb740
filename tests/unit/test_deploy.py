"""The files in deploy/ name settings that exist, with values that the server accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from neops_remote_lab.cli.settings import Settings
from neops_remote_lab.core.settings import ENVIRONMENT_PREFIX, read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT, DROP_IN = DEPLOY / "neops-remote-lab.service", DEPLOY / "neops-remote-lab.service.d" / "several-hosts.conf"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text(encoding="utf-8"))
LAB_HOSTS = ["lab-1", "lab-2"]
URL = "http://lab.example.net:8000"


def unit_environment(*files: Path) -> dict[str, str]:
    """The environment of the service, as systemd sets it on the host `lab-1`."""
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    expanded = text.replace("%S", "/var/lib").replace("%H", "lab-1")
    return dict(re.findall(r"^Environment=(\w+)=(.*)$", expanded, re.MULTILINE))


def service_environment(name: str) -> dict[str, str]:
    """The environment of a service of the compose file, with a value for each variable that the file leaves open."""
    environment = COMPOSE["services"][name]["environment"]
    return {key: re.sub(r"\$\{LAB_\w+\}", URL, re.sub(r":\?\}", "}", value)) for key, value in environment.items()}


def settings(environment: dict[str, str]) -> Settings:
    return read_settings(Settings, {}, environment)


def test_the_unit_alone_uses_sqlite_on_this_host() -> None:
    read = settings(unit_environment(UNIT))
    assert read.service.store.database.startswith("sqlite")
    assert read.server.host == "127.0.0.1"


def test_the_drop_in_lets_several_hosts_share_a_queue() -> None:
    read = settings(unit_environment(UNIT, DROP_IN))
    assert read.service.store.database.startswith("postgresql+psycopg://")
    assert read.service.netlab.lab_host == "lab-1"
    assert read.service.queue.advertise == "http://lab-1:8000"
    assert read.service.labs.on_exit == "keep"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed on this machine")
def test_systemd_reads_the_unit_with_its_drop_in(tmp_path: Path) -> None:
    program = tmp_path / "neops-remote-lab"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", UNIT.read_text(encoding="utf-8")))
    shutil.copytree(DROP_IN.parent, tmp_path / DROP_IN.parent.name)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    warnings = [line for line in done.stderr.splitlines() if UNIT.name in line or DROP_IN.name in line]
    assert warnings == []


def test_the_lab_hosts_of_the_compose_file_share_a_queue_and_differ_in_name() -> None:
    read = [settings(service_environment(name)) for name in LAB_HOSTS]
    assert [each.service.netlab.lab_host for each in read] == LAB_HOSTS
    assert {each.service.queue.advertise for each in read} == {URL}
    [database] = {each.service.store.database for each in read}
    assert database.startswith("postgresql+psycopg://remote_lab@")


def test_each_service_of_the_compose_file_is_in_a_profile_of_its_own() -> None:
    assert {name: service["profiles"] for name, service in COMPOSE["services"].items()} == {
        name: [name] for name in ("database", *LAB_HOSTS)
    }


def test_every_setting_in_the_files_exists() -> None:
    named = set()
    for file in (each for each in DEPLOY.rglob("*") if each.is_file()):
        named |= set(re.findall(rf"\b{ENVIRONMENT_PREFIX}[A-Z_]+[A-Z]\b", file.read_text(encoding="utf-8")))
    assert len(named) > 3
    read_settings(Settings, {}, dict.fromkeys(named, ""))  # refuses unknown names
