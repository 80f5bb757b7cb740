"""What can be said of a topology file before netlab sees it, and which names an upload may bring."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

import yaml

SUFFIXES: Final = (".yml", ".yaml")
NAME_LENGTH: Final = 255
NAME_DEPTH: Final = 16
MAX_DEPTH: Final = 64
"""Deepest nesting of a topology; netlab's own reader recurses."""
TOO_DEEP: Final = f"the topology is nested too deeply: more than {MAX_DEPTH} levels"
_TOO_DEEP_TO_READ: Final = "exceeded maximum nesting depth"
"""What libyaml says from 1000 levels on, where it looks so far ahead that no event has been seen yet."""

# netlab unpickles the first and obeys the others; dot files are read by shells and tools.
RESERVED: Final = frozenset({"netlab.snapshot.pickle", "netlab.snapshot.yml", "netlab.lock", "ansible.cfg"})

TOPOLOGY_FILE: Final = "remote-lab-topology.yml"
"""The topology's name beside its extra files, whatever its user calls it: no uploaded name reaches a command line."""

GENERATED: Final = frozenset({"hosts.yml", "clab.yml"})
"""Files that netlab writes beside the topology, over whatever is there."""

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")


def topology_name(uploaded: str) -> str:
    """The name under which a topology is shown: `x.yaml` becomes `x.yml`, as 1.x stored it.

    Raises:
        ValueError: the name is no plain file name that ends in .yml or .yaml.
    """
    name = relative_name(uploaded)
    if len(name.parts) > 1:
        raise ValueError(f"the topology's file name {uploaded!r} must not name a directory")
    if name.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the topology's file name {uploaded!r} must end in .yml or .yaml")
    return f"{name.stem}.yml"


def relative_name(uploaded: str) -> PurePosixPath:
    """The place of an uploaded file below the work folder.

    Raises:
        ValueError: the name is empty, leaves the folder, or is one that netlab or a tool would obey.
    """
    what = f"the file name {uploaded[:NAME_LENGTH]!r}"
    if not uploaded or _CONTROL.search(uploaded):
        raise ValueError(f"{what} is empty or has control characters")
    if "\\" in uploaded or _DRIVE.match(uploaded) or uploaded.startswith("/"):
        raise ValueError(f"{what} must be relative, with / between folders")
    parts = uploaded.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{what} must not leave the work folder")
    if len(parts) > NAME_DEPTH or any(len(part.encode()) > NAME_LENGTH for part in parts):
        raise ValueError(f"{what} is too long")
    if any(part.startswith(".") for part in parts) or parts[-1].lower() in RESERVED:
        raise ValueError(f"{what} is reserved: netlab or a tool would obey that file")
    return PurePosixPath(*parts)


def is_the_topology(name: PurePosixPath) -> bool:
    """Whether netlab would take an extra file for the topology: it prefers `NAME.26.10.yml` to `NAME.yml`."""
    stem = TOPOLOGY_FILE.removesuffix("yml")
    return name.parts[0].casefold().startswith(stem)


def collision(names: Iterable[PurePosixPath], name: PurePosixPath) -> bool:
    """Whether a name is taken, as a file or as a folder, on a file system that may ignore case."""
    key = str(name).casefold()
    return any(
        key == other or key.startswith(f"{other}/") or other.startswith(f"{key}/")
        for other in (str(known).casefold() for known in names)
    )


def check_topology(content: bytes, *, max_nodes: int) -> None:
    """Refuse what cannot be a topology, and what would make netlab use up the host's memory.

    Raises:
        ValueError: not UTF-8, no YAML mapping, or more than `max_nodes` YAML nodes once aliases are expanded.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the topology is not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise ValueError("the topology is empty")
    tree = _Tree()
    try:
        for event in yaml.parse(text, Loader=_Loader):
            tree.take(event)
    except yaml.YAMLError as error:
        if getattr(error, "problem", None) == _TOO_DEEP_TO_READ:
            raise ValueError(TOO_DEEP) from None
        raise ValueError(f"the topology is not valid YAML: {error}") from None
    if not isinstance(tree.root, yaml.MappingStartEvent):
        raise ValueError("the topology must be a YAML mapping, with nodes and links")
    if tree.size > max_nodes:
        raise ValueError(f"the topology has more than {max_nodes} YAML nodes once its aliases are expanded")


class _Tree:
    """Counts the nodes of a YAML document event by event: nothing is built, and nothing recurses."""

    def __init__(self) -> None:
        self.root: yaml.Event | None = None
        self.size = 0
        self._open: list[tuple[str | None, int]] = []
        self._anchors: dict[str, int | None] = {}

    def take(self, event: yaml.Event) -> None:
        """Count one event. Raises ValueError for what no topology has."""
        if isinstance(event, yaml.AliasEvent):
            self.size += self._size_of(event.anchor or "")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._open.pop()
            if anchor:
                self._anchors[anchor] = self.size - before
        elif isinstance(event, yaml.NodeEvent):
            self._begin(event)
        elif isinstance(event, yaml.DocumentStartEvent) and self.root:
            raise ValueError("the topology is not valid YAML: it holds more than one document")

    def _size_of(self, anchor: str) -> int:
        if anchor not in self._anchors:
            raise ValueError(f"the topology is not valid YAML: there is nothing for its alias *{anchor}")
        if (size := self._anchors[anchor]) is None:
            raise ValueError("the topology has an alias that contains itself")
        return size

    def _begin(self, event: yaml.NodeEvent) -> None:
        self.root = self.root or event
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, self.size))
            if len(self._open) > MAX_DEPTH:
                raise ValueError(TOO_DEEP)
        if event.anchor:
            self._anchors[event.anchor] = None if isinstance(event, yaml.CollectionStartEvent) else 1
        self.size += 1
