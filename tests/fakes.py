"""Helpers for tests that run against the fake ``netlab`` and ``docker`` programs of `neops_remote_lab.testing`."""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import neops_remote_lab.testing
from neops_remote_lab.netlab.failures import GOOD_NAME
from neops_remote_lab.testing.fake_docker import VERSION_LINE
from neops_remote_lab.testing.fake_netlab import KNOBS

# The lock of the process that runs the real netlab, which can have only one lab on a machine.
REAL_NETLAB_LOCK = Path(tempfile.gettempdir()) / "neops-remote-lab-tests-real-netlab.lock"

# The script that pip installs for networklab: it imports a package of its virtual environment. The fakes are imported
# from the checkout, so that Python caches their bytecode.
NETLAB = """\
#!{python} -I
import sys
from netsim.cli import main
if __name__ == '__main__':
    sys.exit(main())
"""
IP = """\
#!{python} -I
import fake_ip
fake_ip.main()
"""
CONTAINERLAB = """\
#!/bin/sh
echo "version: 0.76.0"
"""
# Most calls are `docker --version`, or `docker ps` without containers. The shell answers these, because starting an
# interpreter takes longer.
DOCKER = """\
#!/bin/sh
state=${{FAKE_NETLAB_STATE:-/nowhere}}
nothing_runs() {{
  set -- "$state"/containers/*.json
  [ -d "$state/containers" ] && [ ! -e "$state/control.json" ] && [ ! -e "$1" ]
}}
case "$*" in
  --version) [ -d "$state" ] && [ ! -e "$state/control.json" ] && echo '{version}' && exit 0 ;;
  "ps "*"--quiet"* | "ps "*"--format {{{{json .}}}}") nothing_runs && exit 0 ;;
esac
exec {python} -I -c "import fake_docker; fake_docker.main()" "$@"
"""


FAST_CHECKS = 0.3
"""Seconds during which `wait_until` checks at short intervals; after that it checks less often to save CPU time."""

HOST_COMMANDS = (["version"], ["defaults"])
"""netlab commands that concern the host instead of a lab."""


@dataclass(frozen=True)
class FakeNetlab:
    """A directory that stands in for a lab host: the fake programs, their knobs, and their state."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def system(self) -> Path:
        """The directory that replaces the root of the file system: `etc`, `run` and `sys`."""
        return self.state / "system"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def environment(self) -> dict[str, str]:
        """The environment of a process whose PATH begins with the fakes."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "HOME": str(self.home), "FAKE_NETLAB_STATE": str(self.state)}

    def control(self, **knobs: object) -> None:
        """Set the knobs of all processes that start from now on, instead of all earlier knobs."""
        check_knobs(knobs)
        draft = self.state / f".control.{os.getpid()}"
        draft.write_text(json.dumps(knobs), encoding="utf-8")
        draft.replace(self.state / "control.json")

    def change_containerlab(self, version: str) -> None:
        """Let containerlab report another version."""
        path = self.bin / "containerlab"
        path.write_text(CONTAINERLAB.replace("0.76.0", version), encoding="utf-8")

    def log(self) -> list[dict[str, Any]]:
        return _json_lines(self.state / "log")

    def invocations(self, command: str | None = None) -> list[list[str]]:
        """The arguments of each netlab process that was started for a lab, in order; optionally of one command only.

        `version` and `defaults` concern the host, so they are included only if named.
        """
        started = [line["argv"][1:] for line in self.log() if line["event"] == "start"]
        asked = [argv for argv in started if argv[:2] != ["create", GOOD_NAME]]
        return [argv for argv in asked if (argv[:1] == [command] if command else argv[:1] not in HOST_COMMANDS)]

    def probes(self) -> list[list[str]]:
        """The arguments of each `netlab create` of the topology that checks the defaults of the host."""
        started = [line["argv"][1:] for line in self.log() if line["event"] == "start"]
        return [argv for argv in started if argv[:2] == ["create", GOOD_NAME]]

    def containers(self) -> list[dict[str, Any]]:
        return _json_files(self.state / "containers", "[!.]*.json")

    def networks(self) -> list[dict[str, Any]]:
        return _json_files(self.state / "networks", "[!.]*")

    def instances(self) -> dict[str, Any]:
        """netlab's list of lab instances: entry by instance id."""
        path = self.home / ".netlab" / "status.yaml"
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}

    def violations(self) -> list[str]:
        """One line for each lab that was started beside another one without being separate from it."""
        path = self.state / "violations"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def system_objects(self) -> list[str]:
        """What labs have created besides containers: namespaces, SSH files, bridges, and blocks in `etc/hosts`."""
        hosts = self.system / "etc" / "hosts"
        lines = [line for line in hosts.read_text().splitlines() if "START" in line] if hosts.exists() else []
        patterns = ("run/netns/*", "etc/ssh/ssh_config.d/*", "sys/class/net/*")
        return lines + [path.name for pattern in patterns for path in sorted(self.system.glob(pattern))]

    def leftovers(self) -> list[str]:
        return [
            *self.system_objects(),
            *(f"container {container['name']}" for container in self.containers()),
            *(f"network {network['name']}" for network in self.networks()),
            *(f"instance {name} in {entry['dir']}" for name, entry in self.instances().items()),
        ]

    def is_clean(self) -> bool:
        return not self.leftovers()


def install_fake_netlab(root: Path, *, import_seconds: float = 0) -> FakeNetlab:
    """Install the fake programs into ``bin`` below `root`.

    Args:
        import_seconds: time to import netlab's package, which is most of the start-up time of the real one.
    """
    fake = FakeNetlab(root)
    for directory in (fake.bin, fake.home, fake.state / "containers", fake.state / "networks"):
        directory.mkdir(parents=True, exist_ok=True)
    python = _make_environment(root / "netlab-environment", import_seconds)
    programs = (("netlab", NETLAB), ("docker", DOCKER), ("containerlab", CONTAINERLAB), ("ip", IP))
    for program, text in programs:
        path = fake.bin / program
        path.write_text(text.format(python=python, version=VERSION_LINE), encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return fake


def _make_environment(directory: Path, import_seconds: float) -> Path:
    """Create a virtual environment with a package `netsim`. Returns its Python."""
    real = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    python = directory / "bin" / "python"
    packages = directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    commands = packages / "netsim" / "cli"
    for made in (python.parent, commands):
        made.mkdir(parents=True, exist_ok=True)
    python.symlink_to(real)
    # As `venv` writes it: without the second line, packages of the system's Python could be imported.
    configuration = f"home = {real.parent}\ninclude-system-site-packages = false\n"
    (directory / "pyvenv.cfg").write_text(configuration, encoding="utf-8")
    # Only directories: running the .pth files of the second one would take most of the start-up time.
    paths = [neops_remote_lab.testing.__path__[0], str(Path(yaml.__file__).parent.parent)]
    (packages / "fakes.pth").write_text("\n".join(paths), encoding="utf-8")
    (packages / "netsim" / "__init__.py").write_text(f"import time\ntime.sleep({import_seconds})\n", encoding="utf-8")
    (commands / "__init__.py").write_text("from fake_netlab import main\n", encoding="utf-8")
    (commands / "up.py").touch()
    return python


def check_knobs(knobs: dict[str, Any]) -> None:
    unknown = sorted(set(knobs) - set(KNOBS))
    if unknown:
        raise ValueError(f"the fake netlab has no knob {', '.join(unknown)}; its knobs are {', '.join(KNOBS)}")


def topology_text(nodes: int = 3, provider: str = "clab", name: str | None = None, **x_fake: object) -> str:
    """A chain of devices. The real netlab accepts it too, unless it contains knobs of the fake (`x_fake`)."""
    check_knobs(x_fake)
    names = [f"r{number}" for number in range(1, nodes + 1)]
    links = [f"{left}-{right}" for left, right in itertools.pairwise(names)]
    topology: dict[str, Any] = {
        "provider": provider,
        "defaults": {"device": "linux" if provider == "external" else "frr"},
    }
    topology |= {"name": name} if name else {}
    topology |= {"nodes": names, "links": links}
    topology |= {"x_fake": x_fake} if x_fake else {}
    return yaml.safe_dump(topology, sort_keys=False)


def wait_until(condition: Callable[[], object], timeout: float = 10, message: str = "") -> None:
    """Wait until `condition` is true. Raises `AssertionError` after `timeout` seconds."""
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        if waited > timeout:
            raise AssertionError(message or f"the condition was not met within {timeout} s")
        time.sleep(0.01 if waited < FAST_CHECKS else 0.03)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _json_files(directory: Path, pattern: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(directory.glob(pattern)):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # removed after it was listed
            continue
    return found
