"""`remote_lab_fixture`: creates a pytest fixture from a topology file."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from neops_remote_lab.core.topology_files import PathName, TopologyFiles
from neops_remote_lab.testing.labs import ACCESSES, SCOPES, Access, LabSpec, Scope, mark_as_lab

if TYPE_CHECKING:  # conftest files import this module in every run, and pydantic is slow to import
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
    """Create a pytest fixture that yields the devices of a running lab, a `list[DeviceInfoDto]`.

    Args:
        topology: netlab topology file. A relative path is relative to the caller's directory or the current one.
        name: name of the fixture; default: the stem of the file.
        reuse_lab: consecutive tests share one lab, from the first to the last test that uses this fixture or another
            one with identical files; otherwise each instance of the fixture gets a fresh lab.
        extra_files: files that the topology needs, relative to its directory: paths, directories (which stand for all
            files below them), and patterns as for `pathlib.Path.glob`. They are read when a lab is acquired.
        scope: scope of the fixture: `function`, `class`, `module` or `session`. If the next test does not use the lab,
            the fixture ends early, with everything that depends on it.
        access: `direct`: the devices have netlab's variables, for a machine with routes into the labs; `forward`: the
            variables name ports of this machine, which the server forwards. A setting of the run takes precedence.

    Returns:
        The fixture. Assign it to a name in a test module or `conftest.py`.

    Raises:
        FileNotFoundError: a file does not exist, or no file matches a pattern.
        ValueError: the scope or the access is unknown, an extra file is outside the topology's directory, or the lab
            host refuses its name.
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
        remote_lab_client: RemoteLabClient,  # noqa: ARG001 - so that pytest's error names it if the plugin is disabled
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
