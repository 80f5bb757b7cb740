"""A topology and its extra files on the local machine.

A directory or a pattern stands for its files, without those that netlab writes itself and without dot files. This
module reads only names, modes and, for the identity, contents.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Self

from neops_remote_lab.core.file_names import collision, extra_file_name
from neops_remote_lab.core.identity import EXECUTABLE_MARK, Identity, identity_of, sha256_of
from neops_remote_lab.core.reserved_names import is_ignored, is_written, objection_anywhere

_MAGIC: Final = frozenset("*?[")
"""Characters that make an entry a pattern, unless a file with exactly that name exists."""

PathName = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExtraFile:
    """A file that is sent with a topology.

    Attributes:
        name: its path below the topology's directory, with `/` between directories.
        path: its path on the local machine.
        executable: whether its owner may execute it.
    """

    name: str
    path: Path
    executable: bool


@dataclass(frozen=True, slots=True)
class TopologyFiles:
    """A topology file and the `extra_files` argument that names the files it needs.

    Attributes:
        path: the topology file.
        extra_files: paths, directories and patterns, relative to the topology's directory.
    """

    path: Path
    extra_files: tuple[str, ...] = ()

    @classmethod
    def of(cls, topology: PathName, extra_files: Sequence[PathName] = ()) -> Self:
        """Check the arguments of an acquire; no file is read.

        Raises:
            TypeError: `extra_files` is a single path instead of a sequence.
            ValueError: an entry is empty.
        """
        if isinstance(extra_files, (str, os.PathLike)):
            raise TypeError(f"extra_files must be a sequence of paths, such as [{os.fspath(extra_files)!r}]")
        entries = tuple(os.fspath(entry) for entry in extra_files)
        if "" in entries:
            raise ValueError("an entry of extra_files is empty: '.' stands for the topology's whole directory")
        return cls(Path(topology), entries)

    @property
    def name(self) -> str:
        """The file name of the topology."""
        return self.path.name

    def found(self) -> list[ExtraFile]:
        """The extra files that exist now, sorted by name.

        Raises:
            FileNotFoundError: an entry does not exist, or nothing matches a pattern.
            ValueError: a file is outside the topology's directory, or the lab host refuses its name.
        """
        return _Search(self.path).files(self.extra_files)

    def identity(self) -> Identity:
        """The identity that the lab host will compute for these files.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: as `found`.
        """
        digests = {
            file.name: sha256_of(file.path) + (EXECUTABLE_MARK if file.executable else "") for file in self.found()
        }
        return identity_of(sha256_of(self.path), digests)


class _Search:
    """Finds the extra files of one topology.

    A symbolic link that leads out of the topology's directory is followed only if an entry names it, so that files
    from elsewhere on this machine are not sent by accident.
    """

    def __init__(self, topology: Path) -> None:
        self._directory = Path(os.path.abspath(topology.parent))  # noqa: PTH100 - without `..`, and with its links
        self._topology = PurePosixPath(topology.name)
        self._roots = [self._directory.resolve()]
        self._found: dict[PurePosixPath, Path] = {}

    def files(self, entries: Sequence[str]) -> list[ExtraFile]:
        names = {entry: self._name(entry) for entry in entries}
        named = {entry: path for entry, name in names.items() if os.path.lexists(path := self._directory / name)}
        self._roots += [path.resolve() for path in named.values() if path.exists()]
        for entry, name in names.items():
            if entry in named:
                self._add_named(entry, name, named[entry])
            else:
                self._add_matches(entry, name)
        return [
            ExtraFile(str(name), path, bool(path.stat().st_mode & stat.S_IXUSR))
            for name, path in sorted(self._found.items())
        ]

    def _name(self, entry: str) -> PurePosixPath:
        path = Path(os.path.abspath(self._directory / entry))  # noqa: PTH100 - as above
        if not path.is_relative_to(self._directory):
            raise ValueError(f"the extra file {entry!r} is not in the topology's directory {self._directory}")
        return PurePosixPath(path.relative_to(self._directory).as_posix())

    def _add_matches(self, entry: str, name: PurePosixPath) -> None:
        if not _MAGIC.intersection(entry):
            raise FileNotFoundError(f"there is no extra file {entry!r} in the topology's directory {self._directory}")
        matches = sorted(self._directory.glob(str(name)))
        if not matches:
            raise FileNotFoundError(f"no extra file matches {entry!r} in the topology's directory {self._directory}")
        for match in matches:
            self._add_below(PurePosixPath(match.relative_to(self._directory).as_posix()), match)

    def _add_named(self, entry: str, name: PurePosixPath, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"the extra file {entry!r} is a symbolic link to nothing")
        is_directory = path.is_dir()
        if is_written(name, is_directory=is_directory):
            raise ValueError(f"the extra file {entry!r} cannot be sent: netlab writes files of that name itself")
        if (reason := objection_anywhere(name)) is not None and not is_ignored(str(name)):
            raise ValueError(f"the extra file {entry!r} {reason}")
        if is_directory:
            self._add_children(name, path, ())
        elif path.is_file():
            self._add_file(name, path)
        else:
            raise ValueError(f"the extra file {entry!r} is neither a file nor a directory")

    def _add_children(self, name: PurePosixPath, directory: Path, parents: tuple[Path, ...]) -> None:
        for child in sorted(directory.iterdir()):
            self._add_below(name / child.name, child, (*parents, directory.resolve()))

    def _add_below(self, name: PurePosixPath, path: Path, parents: tuple[Path, ...] = ()) -> None:
        """Add what a directory or a pattern stands for.

        Args:
            parents: the resolved directories between the entry and this path, to detect loops of symbolic links.
        """
        is_directory = path.is_dir()
        if is_written(name, is_directory=is_directory) or any(part.startswith(".") for part in name.parts):
            return
        if not path.exists():
            raise FileNotFoundError(f"the extra file {str(name)!r} is a symbolic link to nothing")
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in self._roots):
            raise ValueError(
                f"the extra file {str(name)!r} is a symbolic link that leads out of the topology's directory, to"
                f" {real}: name {str(name)!r} itself in extra_files to send what is there"
            )
        if is_directory and real not in parents:  # otherwise a symbolic link points to a parent
            self._add_children(name, path, parents)
        elif path.is_file():
            self._add_file(name, path)

    def _add_file(self, name: PurePosixPath, path: Path) -> None:
        if name in self._found or name == self._topology or is_ignored(str(name)):
            return
        extra_file_name(str(name))
        if collision(self._found, name):
            raise ValueError(f"{path} has the name of another extra file, on a file system that ignores case")
        self._found[name] = path
