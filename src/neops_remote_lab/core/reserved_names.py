"""File names that an upload must not contain, because netlab or containerlab reads, writes or deletes files of that
name; and files that a client leaves out of an upload.

Checked with networklab 26.10 and containerlab 0.75: what `netlab create`, `up`, `down --cleanup` and `collect` do in
the directory of a topology. Names are compared case-insensitively.
"""

from pathlib import PurePosixPath
from typing import Final

OBEYED: Final = frozenset({"netlab.snapshot.pickle", "netlab.snapshot.yml", "netlab.lock", "ansible.cfg"})
"""Refused in every directory: netlab unpickles the first and acts on the others, and Ansible reads the last."""

WRITTEN: Final = frozenset(
    {
        "hosts.yml",
        "clab.yml",
        "clab-augment.yml",
        "vagrantfile",
        "external.txt",
        "netlab-devices.yml",
        "netlab.devices.yml",
    }
)
"""Files that netlab, with some provider, writes beside the topology and overwrites without asking."""

REPLACED: Final = frozenset({"node_files", "clab_files"})
"""Directories that netlab deletes and creates again."""

SHARED: Final = frozenset({"group_vars", "host_vars"})
"""Directories in which netlab writes `NAME/topology.*` and keeps all other files, as Ansible users expect."""

TOOLS: Final = frozenset({"graphite", "nso", "nuts", "suzieq"})
"""Directories that netlab creates for its external tools. It keeps files in them that it does not write itself."""

TOOL_FILES: Final = frozenset(
    {
        "graphite/graphite-default.json",
        "nuts/nr-config.yaml",
        "nuts/inventory/groups.yaml",
        "nuts/inventory/hosts.yaml",
        "nuts/tests/test_bgp.yaml",
        "nuts/tests/test_interfaces.yaml",
        "nuts/tests/test_ospf.yaml",
        "suzieq/suzieq-cfg.yml",
        "suzieq/suzieq-inventory.yml",
    }
)
"""Files that netlab overwrites in those directories."""

COMPILED: Final = "__pycache__"
"""Python's cache directory for the plugins of a topology."""

LAB_DIRECTORY: Final = "clab-"
"""Prefix of containerlab's lab directories, which it deletes before it starts a lab."""

IGNORED: Final = frozenset(
    {".ds_store", ".directory", ".editorconfig", ".gitattributes", ".gitignore", ".gitkeep", ".keep", ".localized"}
)
"""Dot files of editors, file managers and git, which netlab does not read."""
IGNORED_PREFIX: Final = "._"
"""Prefix of the files in which macOS stores extended attributes."""


def is_ignored(name: str) -> bool:
    """Whether an upload leaves a file out silently: users do not send it on purpose, and no tool here reads it."""
    last = name.rsplit("/", 1)[-1].lower()
    return last in IGNORED or last.startswith(IGNORED_PREFIX)


def objection_anywhere(name: PurePosixPath) -> str | None:
    """Why a name is not allowed in any directory, as the end of a sentence; None if it is allowed."""
    parts = [part.lower() for part in name.parts]
    if dotted := next((part for part in parts if part.startswith(".")), None):
        ignored = ", ".join(sorted(IGNORED))
        return (
            f"has {dotted!r}, which begins with a dot: shells and tools obey such files, so they are refused"
            f" (but for {ignored} and {IGNORED_PREFIX}*, which are ignored)"
        )
    if obeyed := next((part for part in parts if part in OBEYED), None):
        return f"has {obeyed!r}: netlab or Ansible would obey a file of that name"
    return None


def objection_beside_topology(name: PurePosixPath) -> str | None:
    """Why a relative name is not allowed beside a topology, as the end of a sentence; None if it is allowed."""
    parts = tuple(part.lower() for part in name.parts)
    first, is_directory = parts[0], len(parts) > 1
    if first in WRITTEN:
        return f"has {first!r}: netlab writes a file of that name itself"
    if first in REPLACED:
        return f"has {first!r}: netlab deletes files of that name and creates a directory in their place"
    if first.startswith(LAB_DIRECTORY) and (is_directory or "." not in first):
        return (
            f"has {first!r}: containerlab keeps labs in directories that begin with {LAB_DIRECTORY!r}, and deletes them"
        )
    if first in SHARED | TOOLS and not is_directory:
        return f"is that of a directory, {first!r}, that netlab creates"
    return _objection_to_variables(parts) if first in SHARED else None


def is_written(name: PurePosixPath, *, is_directory: bool) -> bool:
    """Whether netlab, or a tool that it starts, writes or deletes this file or directory beside a topology.

    Args:
        name: the path below the topology's directory.
        is_directory: whether it is a directory, which stands for everything below it.
    """
    parts = tuple(part.lower() for part in name.parts)
    if not parts:
        return False
    return (
        not OBEYED.isdisjoint(parts)
        or COMPILED in parts
        or parts[0] in WRITTEN | REPLACED
        or (parts[0].startswith(LAB_DIRECTORY) and (is_directory or len(parts) > 1))
        or (parts[0] in SHARED and len(parts) == 3 and parts[2].split(".")[0] == "topology")
        or "/".join(parts) in TOOL_FILES
    )


def _objection_to_variables(parts: tuple[str, ...]) -> str | None:
    if len(parts) == 2 and "." not in parts[1]:
        return f"is that of a directory that netlab creates for the variables of {parts[1]!r}: add .yml to it"
    if len(parts) == 3 and parts[2].split(".")[0] == "topology":
        return "is that of a file with variables that netlab writes itself"
    return None
