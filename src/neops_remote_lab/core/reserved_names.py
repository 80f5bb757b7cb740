"""Which names an upload may not bring, since netlab or containerlab writes, obeys or deletes what is called so,
and which files a client leaves out by itself.

Checked with networklab 26.10 and containerlab 0.75: what `netlab create`, `up`, `down --cleanup` and `collect` do in
the directory of a topology. All names are compared without regard to case.
"""

from pathlib import PurePosixPath
from typing import Final

OBEYED: Final = frozenset({"netlab.snapshot.pickle", "netlab.snapshot.yml", "netlab.lock", "ansible.cfg"})
"""netlab unpickles the first and obeys the others, Ansible the last: refused in every directory."""

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
"""Files that netlab writes beside the topology, over whatever is there, for one provider or another."""

REPLACED: Final = frozenset({"node_files", "clab_files"})
"""Directories that netlab deletes and makes anew."""

SHARED: Final = frozenset({"group_vars", "host_vars"})
"""Directories in which netlab writes `NAME/topology.*` and leaves other files alone, as Ansible users expect."""

TOOLS: Final = frozenset({"graphite", "nso", "nuts", "suzieq"})
"""Directories that netlab makes for its external tools, and in which it writes beside what is there."""

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
"""What it writes there, over whatever is there."""

COMPILED: Final = "__pycache__"
"""The directory in which Python keeps the plugins of a topology once netlab has loaded them."""

LAB_DIRECTORY: Final = "clab-"
"""How the directory begins in which containerlab keeps a lab, and which it deletes before it starts one."""

IGNORED: Final = frozenset(
    {".ds_store", ".directory", ".editorconfig", ".gitattributes", ".gitignore", ".gitkeep", ".keep", ".localized"}
)
"""Dot files that editors, file managers and git leave in a directory, and that mean nothing to netlab."""
IGNORED_PREFIX: Final = "._"
"""How the files begin in which macOS keeps what other file systems cannot."""


def is_ignored(name: str) -> bool:
    """Whether a file is left out of an upload without a word: a person did not mean it, and no tool here reads it."""
    last = name.rsplit("/", 1)[-1].lower()
    return last in IGNORED or last.startswith(IGNORED_PREFIX)


def objection_anywhere(name: PurePosixPath) -> str | None:
    """Why no file may be called so in any directory, as the end of a sentence; None where it may."""
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
    """Why a file of this relative name may not lie beside a topology, as the end of a sentence; None where it may."""
    parts = tuple(part.lower() for part in name.parts)
    first, is_directory = parts[0], len(parts) > 1
    if first in WRITTEN:
        return f"has {first!r}: netlab writes a file of that name itself"
    if first in REPLACED:
        return f"has {first!r}: netlab deletes what is called so and makes a directory of that name"
    if first.startswith(LAB_DIRECTORY) and (is_directory or "." not in first):
        return (
            f"has {first!r}: containerlab keeps labs in directories that begin with {LAB_DIRECTORY!r}, and deletes them"
        )
    if first in SHARED | TOOLS and not is_directory:
        return f"is that of a directory, {first!r}, that netlab makes"
    return _objection_to_variables(parts) if first in SHARED else None


def is_written(name: PurePosixPath, *, is_directory: bool) -> bool:
    """Whether netlab, or a tool that it starts, writes what is called so beside a topology, over whatever is there.

    Args:
        name: the path below the topology's directory.
        is_directory: whether it is one, and so stands for all below it.
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
        return f"is that of a directory that netlab makes for the variables of {parts[1]!r}: add .yml to it"
    if len(parts) == 3 and parts[2].split(".")[0] == "topology":
        return "is that of a file with variables that netlab writes itself"
    return None
