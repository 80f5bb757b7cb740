"""What can be said of a topology file before netlab sees it, and which names an upload may bring."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

import yaml

SUFFIXES: Final = (".yml", ".yaml")
NAME_LENGTH: Final = 255
NAME_DEPTH: Final = 16

# netlab unpickles the first and obeys the others; dot files are read by shells and tools.
RESERVED: Final = frozenset({"netlab.snapshot.pickle", "netlab.snapshot.yml", "netlab.lock", "ansible.cfg"})

GENERATED: Final = frozenset({"hosts.yml", "clab.yml"})
"""Files that netlab writes beside the topology, over whatever is there."""

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")


def topology_name(uploaded: str) -> str:
    """The name under which a topology is stored: `x.yaml` becomes `x.yml`, since netlab's host takes that alone.

    Raises:
        ValueError: the name is no plain file name that ends in .yml or .yaml.
    """
    name = relative_name(uploaded)
    if len(name.parts) > 1:
        raise ValueError(f"the topology's file name {uploaded!r} must not name a folder")
    if name.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the topology's file name {uploaded!r} must end in .yml or .yaml")
    stored = f"{name.stem}.yml"
    return f"topology-{stored}" if stored.lower() in GENERATED else stored


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
    try:
        root = yaml.compose(text, Loader=_Loader)
        count = _expanded_nodes(root)
    except yaml.YAMLError as error:
        raise ValueError(f"the topology is not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError("the topology is nested too deeply") from None
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("the topology must be a YAML mapping, with nodes and links")
    if count > max_nodes:
        raise ValueError(f"the topology has more than {max_nodes} YAML nodes once its aliases are expanded")


def _expanded_nodes(root: yaml.Node | None) -> int:
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise ValueError("the topology has an alias that contains itself")
        if key not in sizes:
            open_nodes.add(key)
            sizes[key] = 1 + sum(size(child) for child in _children(node))
            open_nodes.discard(key)
        return sizes[key]

    return size(root) if root else 0


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
