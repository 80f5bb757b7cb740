"""`remote_lab_fixture`: makes a pytest fixture out of a topology file."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.testing.labs import ACCESSES, SCOPES, Access, LabSpec, Scope, mark_as_lab

if TYPE_CHECKING:  # conftest files import this module in every run: pydantic has to wait until a lab is used
    from neops_remote_lab.client.lab_client import RemoteLabClient
    from neops_remote_lab.models.lab import DeviceInfoDto
    from neops_remote_lab.testing.holder import LabHolder


def remote_lab_fixture(
    topology: str | Path,
    *,
    name: str | None = None,
    reuse_lab: bool = False,
    extra_files: Sequence[PathName] = (),
    scope: Scope = "function",
    access: Access = "direct",
) -> Any:
    """Make a pytest fixture that yields the devices of a running lab, a `list[DeviceInfoDto]`.

    Args:
        topology: netlab topology file. A relative path starts at the caller's directory, else at the current one.
        name: the fixture's name; the file's stem where none is given.
        reuse_lab: tests in a row share one lab, from the first to the last one that uses the fixture, or another one
            with files of the same contents; otherwise each instance of the fixture gets a fresh one.
        extra_files: files that the topology needs, relative to its directory: paths, directories that stand for all
            below them, and patterns as `pathlib.Path.glob` has them. They are read when a lab is acquired.
        scope: what one instance of the fixture lives for: a `function`, `class`, `module` or `session`. It ends early,
            with all that depends on it, when the next test does not use its lab.
        access: `direct`: the devices' variables are netlab's own, for a machine with routes into the labs; `forward`:
            they lead to ports of this machine, and from there through the server. A setting of the run counts before.

    Returns:
        The fixture, to be assigned to a name of a test module or `conftest.py`.

    Raises:
        FileNotFoundError: there is no such file, no such extra file, or none that matches a pattern.
        ValueError: the scope or the access is none of these, an extra file lies outside of the topology's directory, or
            the lab host refuses its name.
    """
    if scope not in SCOPES:
        raise ValueError(f"the scope of a lab must be one of {', '.join(SCOPES)}, not {scope!r}")
    if access not in ACCESSES:
        raise ValueError(f"the access to a lab must be one of {', '.join(ACCESSES)}, not {access!r}")
    path = _find(Path(topology), Path(sys._getframe(1).f_code.co_filename).parent)
    files = TopologyFiles.of(path, extra_files)
    files.found()
    spec = LabSpec(files, name or path.stem, reuse_lab, scope, access)

    def lab(
        request: pytest.FixtureRequest,
        remote_lab_client: RemoteLabClient,  # noqa: ARG001 - what pytest misses by name where the plugin is switched off
        _remote_lab_holder: LabHolder,
    ) -> Iterator[list[DeviceInfoDto]]:
        with _remote_lab_holder.lend(spec, request) as devices:
            yield devices

    lab.__doc__ = f"The devices of the remote lab {path.name}."
    mark_as_lab(lab, spec)
    return pytest.fixture(name=spec.name, scope=scope)(lab)


def _find(topology: Path, caller: Path) -> Path:
    beside, current = caller / topology, Path.cwd() / topology
    found = [path for path in (beside, current) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"no topology file {topology}, neither from {caller} nor from {Path.cwd()}")
    if len(found) == 2 and beside.read_bytes() != current.read_bytes():
        warnings.warn(
            f"there are two topology files {topology}: {beside} is used, and not {current}, which earlier versions"
            " preferred: give an absolute path to choose",
            pytest.PytestWarning,
            stacklevel=3,
        )
    return found[0]
