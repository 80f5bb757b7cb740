"""Several labs of one process, without a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import neops_remote_lab
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.netlab.host_lab import HostLab
from neops_remote_lab.netlab.host_labs import HostLabs
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import Workspace, abandoned_workspace, copy_topology

SERVER = """\
import sys, threading
from pathlib import Path
from neops_remote_lab.core.topology_files import TopologyFiles
from neops_remote_lab.netlab.host_labs import HostLabs
from neops_remote_lab.netlab.settings import NetlabSettings
from neops_remote_lab.netlab.workspace import copy_topology
settings = NetlabSettings.model_validate({settings!r})
labs = HostLabs(settings)
for topology in sys.argv[1:]:
    workspace = copy_topology(TopologyFiles.of(Path(topology), ()), settings.work_dir, settings.lab_host)
    lab = labs.new()
    lab.reserve(workspace)
    lab.start(workspace, threading.Event())
    print(workspace.lab_id, flush=True)
sys.stdin.read()
"""


class Labs:
    """The labs of one process."""

    def __init__(self, settings: dict[str, Any], **changes: object) -> None:
        self.settings = NetlabSettings.model_validate({**settings, "slots": 3, **changes})
        self.host_labs = HostLabs(self.settings)
        self.labs: list[HostLab] = []

    def new(self) -> HostLab:
        self.labs.append(self.host_labs.new())
        return self.labs[-1]

    def upload(self, topology: Path) -> Workspace:
        return copy_topology(TopologyFiles.of(topology, ()), self.settings.work_dir, self.settings.lab_host)

    def check(self, topology: Path) -> Workspace:
        """Prepare a lab, as for a waiting session."""
        workspace = self.upload(topology)
        self.host_labs.commands.create(workspace, threading.Event())
        return workspace

    def start(self, topology: Path | Workspace) -> HostLab:
        lab = self.new()
        workspace = topology if isinstance(topology, Workspace) else self.upload(topology)
        lab.reserve(workspace)
        lab.start(workspace, threading.Event())
        return lab

    def at_once(self, *topologies: Path) -> list[HostLab]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.start, topologies))

    def close(self) -> None:
        self.host_labs.commands.stop_preloading()
        for lab in self.labs:
            lab.tear_down()


def killed_server(settings: dict[str, Any], *topologies: Path, **changes: object) -> list[Workspace]:
    """Start labs in a process with this environment, and kill it. Returns the workspaces of the labs."""
    values = {name: str(value) for name, value in {**settings, "slots": 3, **changes}.items()}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER.replace("{settings!r}", repr(values)), *map(str, topologies)],
        env=os.environ | {"PYTHONPATH": str(Path(neops_remote_lab.__path__[0]).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    names = [server.stdout.readline().strip() for _ in topologies]
    server.send_signal(signal.SIGKILL)
    server.communicate()
    return [abandoned_workspace(Path(values["work_dir"]) / name) for name in names]
