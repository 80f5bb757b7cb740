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
from neops_remote_lab.testing.fake_netlab import KNOBS

# Held by whichever test process runs the real netlab: it can have only one lab on a machine.
REAL_NETLAB_LOCK = Path(tempfile.gettempdir()) / "neops-remote-lab-tests-real-netlab.lock"

# Without -S every start reads the whole site-packages folder's .pth files. The modules are imported rather than run as
# scripts, so that Python keeps them compiled.
SHIM = """\
#!{python} -IS
import sys
sys.path += [{modules!r}, {packages!r}]
import {module}
{module}.main()
"""


@dataclass(frozen=True)
class FakeNetlab:
    """A lab host made of files: the fake programs, their knobs, and what they left behind."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def environment(self) -> dict[str, str]:
        """The whole environment for a process that is to find the fakes first."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "HOME": str(self.home), "FAKE_NETLAB_STATE": str(self.state)}

    def control(self, **knobs: object) -> None:
        """Replace all knobs by these, for every process that starts from now on."""
        check_knobs(knobs)
        draft = self.state / f".control.{os.getpid()}"
        draft.write_text(json.dumps(knobs), encoding="utf-8")
        draft.replace(self.state / "control.json")

    def log(self) -> list[dict[str, Any]]:
        return _json_lines(self.state / "log")

    def invocations(self, command: str | None = None) -> list[list[str]]:
        """The arguments of each netlab that was started, in order; only those of `command` where one is given."""
        started = [line["argv"][1:] for line in self.log() if line["event"] == "start"]
        return [argv for argv in started if command is None or argv[:1] == [command]]

    def containers(self) -> list[dict[str, Any]]:
        return _json_files(self.state / "containers", "[!.]*.json")

    def networks(self) -> list[dict[str, Any]]:
        return _json_files(self.state / "networks", "[!.]*")

    def instances(self) -> dict[str, Any]:
        """netlab's registry: instance id -> its entry."""
        path = self.home / ".netlab" / "status.yaml"
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}

    def violations(self) -> list[str]:
        """One line for each lab that was started while another one was alive."""
        path = self.state / "violations"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def leftovers(self) -> list[str]:
        return [
            *(f"container {container['name']}" for container in self.containers()),
            *(f"network {network['name']}" for network in self.networks()),
            *(f"instance {name} in {entry['dir']}" for name, entry in self.instances().items()),
        ]

    def is_clean(self) -> bool:
        return not self.leftovers()


def install_fake_netlab(root: Path) -> FakeNetlab:
    """Make a lab host below `root`, with the executables ``bin/netlab`` and ``bin/docker``."""
    fake = FakeNetlab(root)
    for folder in (fake.bin, fake.home, fake.state / "containers", fake.state / "networks"):
        folder.mkdir(parents=True, exist_ok=True)
    for program in ("netlab", "docker"):
        write_shim(fake.bin / program, f"fake_{program}")
    return fake


def write_shim(path: Path, module: str) -> None:
    modules = Path(neops_remote_lab.testing.__path__[0])
    packages = Path(yaml.__file__).parent.parent
    text = SHIM.format(python=sys.executable, modules=str(modules), packages=str(packages), module=module)
    path.write_text(text, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def check_knobs(knobs: dict[str, Any]) -> None:
    unknown = sorted(set(knobs) - set(KNOBS))
    if unknown:
        raise ValueError(f"the fake netlab has no knob {', '.join(unknown)}; it knows {', '.join(KNOBS)}")


def topology_text(nodes: int = 3, provider: str = "clab", name: str | None = None, **x_fake: object) -> str:
    """A chain of `nodes` devices that the real netlab takes as well, unless it carries knobs (`x_fake`)."""
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
    """Return as soon as `condition` holds; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(message or f"waited {timeout} s in vain")
        time.sleep(0.01)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _json_files(folder: Path, pattern: str) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob(pattern)):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:  # it was removed since it was listed
            continue
    return found
