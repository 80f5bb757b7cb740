"""`remote_lab_fixture`: makes a pytest fixture out of a topology file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from neops_remote_lab.testing.labs import LabSpec, mark_as_lab

if TYPE_CHECKING:  # conftest files import this module in every run: pydantic has to wait until a lab is used
    from neops_remote_lab.client import RemoteLabClient
    from neops_remote_lab.models.lab import DeviceInfoDto
    from neops_remote_lab.testing.holder import LabHolder


def remote_lab_fixture(topology: str | Path, *, name: str | None = None, reuse_lab: bool = False) -> Any:
    """Make a function-scoped pytest fixture that yields the devices of a running lab, a `list[DeviceInfoDto]`.

    Args:
        topology: netlab topology file. A relative path starts at the current directory, else at the caller's folder.
        name: the fixture's name; the file's stem where none is given.
        reuse_lab: tests in a row share one lab, from the first to the last one that uses the fixture; otherwise each
            test gets a fresh one.

    Returns:
        The fixture, to be assigned to a name of a test module or `conftest.py`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = _find(Path(topology), Path(sys._getframe(1).f_code.co_filename).parent)
    spec = LabSpec(path, name or path.stem, reuse_lab)

    def lab(
        remote_lab_client: RemoteLabClient,  # noqa: ARG001 - what pytest misses by name where the plugin is switched off
        _remote_lab_holder: LabHolder,
    ) -> Iterator[list[DeviceInfoDto]]:
        with _remote_lab_holder.lend(spec) as devices:
            yield devices

    lab.__doc__ = f"The devices of the remote lab {path.name}."
    mark_as_lab(lab, spec)
    return pytest.fixture(name=spec.name)(lab)


def _find(topology: Path, caller: Path) -> Path:
    for path in (Path.cwd() / topology, caller / topology):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no topology file {topology}, neither from {Path.cwd()} nor from {caller}")
