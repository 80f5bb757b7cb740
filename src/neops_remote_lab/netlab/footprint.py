"""What a lab makes on the host besides its containers, and what was there before its start.

A start makes Docker's management network, bridges for links of other than two nodes, a network namespace for each
container, a block in `/etc/hosts` and a file in `/etc/ssh/ssh_config.d`. Only what a lab's own containerlab topology
names and what was not there before its start is reported or removed.
"""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

FOOTPRINT: Final = "footprint.json"
BEFORE: Final = "before.json"
_HOSTS: Final = "etc/hosts"
_SSH: Final = "etc/ssh/ssh_config.d"
_BLOCK: Final = re.compile(r"^###### CLAB-(.+)-START ######$", re.MULTILINE)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]
"""A name that no command takes for an option, and that is no path."""
Kind = Literal["bridge", "namespace", "hosts", "ssh"]
Run = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints."""


class Footprint(BaseModel):
    """What a lab makes, as its containerlab topology says."""

    model_config = ConfigDict(frozen=True)

    name: Name
    """containerlab's name of the lab."""
    network: Name
    bridges: frozenset[Name] = frozenset()
    containers: frozenset[Name] = frozenset()
    """Their network namespaces have the same names."""

    def objects(self) -> set["HostObject"]:
        """All that may be left of it, apart from containers and the network."""
        return {
            *(HostObject("bridge", name) for name in self.bridges),
            *(HostObject("namespace", name) for name in self.containers),
            HostObject("hosts", self.name),
            HostObject("ssh", f"clab-{self.name}.conf"),
        }


class HostObject(NamedTuple):
    """One thing of the host that a lab has made."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        """What is left, for a person."""
        return {
            "bridge": f"bridge {self.name}",
            "namespace": f"network namespace {self.name}",
            "hosts": f"the block CLAB-{self.name} in /{_HOSTS}",
            "ssh": f"the file {self.name} in /{_SSH}",
        }[self.kind]


class Before(BaseModel):
    """What was on the host before a lab's start: it stays."""

    networks: frozenset[str] | None
    """Docker's networks; None where Docker could not be asked."""
    objects: frozenset[HostObject]


def read_footprint(base: Path, directory: Path) -> Footprint | None:
    """What a lab makes; None before its containerlab topology is written.

    It is noted beside the directory that netlab runs in: `netlab down` removes the topology, be the rest gone or not.
    """
    if (found := _of_topology(directory)) is not None:
        with suppress(OSError):  # a full disk: the topology itself still tells
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


def spare_network(directory: Path) -> None:
    """Let the containerlab topology name a network that does not exist, so that the end of the lab removes none."""
    path = directory / "clab.yml"
    topology: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    topology["mgmt"] = {**(topology.get("mgmt") or {}), "network": f"none-{os.urandom(8).hex()}"}
    draft = path.with_suffix(".new")
    draft.write_text(yaml.safe_dump(topology, sort_keys=False), encoding="utf-8")
    draft.replace(path)


def note_before(base: Path, before: Before) -> None:
    """Note what is there before a start, so that it survives a loss of power."""
    with (base / BEFORE).open("w", encoding="utf-8") as file:
        file.write(before.model_dump_json())
        file.flush()
        os.fsync(file.fileno())


def read_before(base: Path) -> Before | None:
    """What was there before a lab's start; None where that was not noted."""
    try:
        return Before.model_validate_json((base / BEFORE).read_bytes())
    except (OSError, ValidationError):
        return None


class HostObjects:
    """The host's bridges, network namespaces, hosts file and SSH configuration. All methods block."""

    def __init__(self, root: Path, run: Run) -> None:
        """`root` is the directory in which `etc`, `run` and `sys` lie."""
        self._root = root
        self._run = run

    def all(self) -> set[HostObject]:
        """All there are, whoever made them."""
        bridges = {path.parent.name for path in (self._root / "sys/class/net").glob("*/bridge")}
        hosts = _BLOCK.findall(self._hosts())
        ssh = {path.name for path in (self._root / _SSH).glob("clab-*.conf")}
        return {
            *(HostObject("bridge", name) for name in bridges),
            *(HostObject("namespace", name) for name in self._namespaces()),
            *(HostObject("hosts", name) for name in hosts),
            *(HostObject("ssh", name) for name in ssh),
        }

    def left_of(self, footprint: Footprint | None, before: Before | None) -> set[HostObject]:
        """What is provably left of a lab."""
        if footprint is None or before is None:
            return set()
        return (footprint.objects() & self.all()) - before.objects

    def remove(self, found: HostObject) -> None:
        """Remove one thing; the caller looks again for what is left."""
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
        """Cut a block out in place, since a mounted file cannot be replaced; what precedes the block is not written."""
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
