"""Objects that a lab creates on the host besides its containers, and a baseline of what existed before its start.

A start creates Docker's management network, a bridge for each link that does not have exactly two nodes, a network
namespace for each container, a block in `/etc/hosts` and a file in `/etc/ssh/ssh_config.d`. Only objects that the lab's
containerlab topology names and that are not in the baseline are reported or removed.
"""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import yaml
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOOTPRINT: Final = "footprint.json"
BASELINE: Final = "baseline.json"
_HOSTS: Final = "etc/hosts"
_HOSTS_LOCK: Final = "run/lock/clab-hosts.lock"
HOSTS_TIMEOUT: Final = 10.0
"""Seconds to wait for the lock of the hosts file. containerlab holds it for milliseconds."""
_SSH: Final = "etc/ssh/ssh_config.d"
_BLOCK: Final = re.compile(r"^###### CLAB-(.+)-START ######$", re.MULTILINE)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]
"""A name that commands cannot mistake for an option, and that is not a path."""
Kind = Literal["bridge", "namespace", "hosts", "ssh"]
Run = Callable[[Sequence[str]], str]
"""Runs a command and returns its output."""


class Footprint(BaseModel):
    """The names of everything that a lab creates, from its containerlab topology."""

    model_config = ConfigDict(frozen=True)

    name: Name
    """containerlab's name of the lab."""
    network: Name
    bridges: frozenset[Name] = frozenset()
    containers: frozenset[Name] = frozenset()
    """Their network namespaces have the same names."""

    def objects(self) -> set["HostObject"]:
        """Every object that the lab may leave behind, except containers and the network."""
        return {
            *(HostObject("bridge", name) for name in self.bridges),
            *(HostObject("namespace", name) for name in self.containers),
            HostObject("hosts", self.name),
            HostObject("ssh", f"clab-{self.name}.conf"),
        }


class HostObject(NamedTuple):
    """An object on the host that a lab may have created."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        """The object as messages name it."""
        return {
            "bridge": f"bridge {self.name}",
            "namespace": f"network namespace {self.name}",
            "hosts": f"the block CLAB-{self.name} in /{_HOSTS}",
            "ssh": f"the file {self.name} in /{_SSH}",
        }[self.kind]


class Baseline(BaseModel):
    """What existed on the host before a lab's start. None of it is ever removed."""

    networks: frozenset[str] | None
    """Docker's networks; None if Docker could not be queried."""
    objects: frozenset[HostObject]


def read_footprint(base: Path, directory: Path) -> Footprint | None:
    """The footprint of a lab; None before netlab has written the containerlab topology.

    A copy is saved in `base`, because `netlab down` deletes the topology even if it fails to remove the rest.
    """
    if (found := _of_topology(directory)) is not None:
        with suppress(OSError):  # on a full disk, the topology is still there
            (base / FOOTPRINT).write_text(found.model_dump_json())
        return found
    try:
        return Footprint.model_validate_json((base / FOOTPRINT).read_bytes())
    except (OSError, ValidationError):
        return None


def _of_topology(directory: Path) -> Footprint | None:
    try:
        topology = yaml.safe_load((directory / "clab.yml").read_text(encoding="utf-8"))
        nodes = topology["topology"].get("nodes") or {}
        bridges = {name for name, node in nodes.items() if str((node or {}).get("kind", "")).endswith("bridge")}
        prefix = topology.get("prefix", "clab")
        stem = f"{prefix}-{topology['name']}-" if prefix else ""
        return Footprint(
            name=topology["name"],
            network=(topology.get("mgmt") or {}).get("network") or "clab",
            bridges=frozenset(bridges),
            containers=frozenset(f"{stem}{name}" for name in nodes.keys() - bridges),
        )
    except (OSError, UnicodeDecodeError, yaml.YAMLError, LookupError, TypeError, AttributeError, ValidationError):
        return None


def protect_network(directory: Path) -> None:
    """Replace the network in the containerlab topology by a nonexistent one, so that the teardown removes none."""
    path = directory / "clab.yml"
    topology: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    topology["mgmt"] = {**(topology.get("mgmt") or {}), "network": f"none-{os.urandom(8).hex()}"}
    draft = path.with_suffix(".new")
    draft.write_text(yaml.safe_dump(topology, sort_keys=False), encoding="utf-8")
    draft.replace(path)


def write_baseline(base: Path, baseline: Baseline) -> None:
    """Save the baseline of a lab durably: it survives a power loss."""
    with (base / BASELINE).open("w", encoding="utf-8") as file:
        file.write(baseline.model_dump_json())
        file.flush()
        os.fsync(file.fileno())


def read_baseline(base: Path) -> Baseline | None:
    """The baseline of a lab; None if there is none that can be read."""
    try:
        return Baseline.model_validate_json((base / BASELINE).read_bytes())
    except (OSError, ValidationError):
        return None


class HostObjects:
    """The host's bridges, network namespaces, hosts file and SSH configuration. All methods block."""

    def __init__(self, root: Path, run: Run) -> None:
        """`root` is the directory that contains `etc`, `run` and `sys`."""
        self._root = root
        self._run = run

    def all(self) -> set[HostObject]:
        """All objects on the host, including those that are not ours."""
        bridges = {path.parent.name for path in (self._root / "sys/class/net").glob("*/bridge")}
        hosts = _BLOCK.findall(self._hosts())
        ssh = {path.name for path in (self._root / _SSH).glob("clab-*.conf")}
        return {
            *(HostObject("bridge", name) for name in bridges),
            *(HostObject("namespace", name) for name in self._namespaces()),
            *(HostObject("hosts", name) for name in hosts),
            *(HostObject("ssh", name) for name in ssh),
        }

    def leftovers_of(self, footprint: Footprint | None, baseline: Baseline | None) -> set[HostObject]:
        """The objects that provably belong to a lab and still exist."""
        if footprint is None or baseline is None:
            return set()
        return (footprint.objects() & self.all()) - baseline.objects

    def remove(self, found: HostObject) -> None:
        """Try to remove one object. The caller checks what is left."""
        with suppress(OSError, subprocess.SubprocessError):
            match found.kind:
                case "bridge":
                    self._as_root(["ip", "link", "delete", "dev", found.name, "type", "bridge"])
                case "namespace":
                    self._as_root(["ip", "netns", "delete", found.name])
                case "hosts":
                    self._remove_block(found.name)
                case "ssh":
                    (self._root / _SSH / found.name).unlink()

    def _as_root(self, command: list[str]) -> None:
        try:
            self._run(command)
        except subprocess.CalledProcessError:
            if os.geteuid() == 0:
                raise
            self._run(["sudo", "-n", *command])

    def _namespaces(self) -> list[str]:
        directory = self._root / "run/netns"
        return [path.name for path in directory.iterdir()] if directory.is_dir() else []

    def _hosts(self) -> str:
        try:
            return (self._root / _HOSTS).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return ""

    def _remove_block(self, name: str) -> None:
        """Remove a block in place: a bind-mounted file cannot be replaced. Text before the block is not rewritten."""
        with self._hosts_lock():
            self._remove_block_of(name)

    def _hosts_lock(self) -> AbstractContextManager[object]:
        """The lock with which containerlab protects the hosts file, if this version has one."""
        path = self._root / _HOSTS_LOCK
        return FileLock(path, timeout=HOSTS_TIMEOUT, mode=0o644) if path.exists() else nullcontext()

    def _remove_block_of(self, name: str) -> None:
        text = self._hosts()
        start, end = f"###### CLAB-{name}-START ######\n", f"###### CLAB-{name}-END ######\n"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            return
        with (self._root / _HOSTS).open("r+b") as file:
            file.seek(len(before.encode(errors="surrogateescape")))
            file.write(after.encode(errors="surrogateescape"))
            file.truncate()
