"""Keeps what would explain the failure of a lab test: fetched while its lab is still there, one directory a test."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from neops_remote_lab.testing import xdist
from neops_remote_lab.testing.sources import OFF, ON, Sources

if TYPE_CHECKING:
    from neops_remote_lab.testing.session import LabClient

SECTION: Final = "remote lab artifacts"
"""Title of the section in the report of a failure."""
PROPERTY: Final = "remote_lab_artifacts"
"""Name of the property in JUnit's XML."""
OUTPUT: Final = "remote-lab-artifacts"
"""Directory below the root of the project where none is chosen."""
NAME_LENGTH: Final = 150
"""Characters of a test's own name in that of its directory: with the rest, every file system takes it."""


class ArtifactKeeper:
    """Fetches artifacts for tests, as the settings of the run say.

    Args:
        config: the pytest run.

    Raises:
        ValueError: a setting cannot be read; the message names its source.
    """

    def __init__(self, config: pytest.Config) -> None:
        sources = Sources.of(config)
        self._mode = sources.value("artifacts")
        self._current = config.invocation_params.dir
        chosen = sources.value("output")
        self._output = self._current / chosen if chosen else config.rootpath / OUTPUT
        self._copy = xdist.copy_of(config)
        self._begun: set[str] = set()
        self._kept: tuple[str | None, str] | None = None
        """What was fetched for the present test: where it is, and what its report tells."""

    def begin(self, item: pytest.Item) -> None:
        """Remove what an earlier run has kept for a test; what is kept when a test is repeated stays."""
        self._kept = None
        if self._mode != OFF and item.nodeid not in self._begun:
            self._begun.add(item.nodeid)
            shutil.rmtree(self._directory(item), ignore_errors=True)

    def keep(self, item: pytest.Item, report: pytest.TestReport, client: LabClient) -> str | None:
        """Fetch the artifacts of the lab that a test has, if they are wanted, and tell in its report where they are.

        Never raises: what goes wrong is a warning and a line of the report.

        Returns:
            Where they are; None where there are none.
        """
        wanted = self._mode == ON or (self._mode != OFF and report.failed)
        if not wanted or not hasattr(client, "artifacts"):  # which the client of a conftest file may lack
            return None
        if report.failed and hasattr(item.config.hook, "pytest_timeout_cancel_timer"):
            # pytest-timeout itself does so once the failure is reported
            item.config.hook.pytest_timeout_cancel_timer(item=item)
        if self._kept is None:
            self._kept = self._fetch(item, client)
        path, told = self._kept
        report.sections.append((SECTION, told))
        return path

    def _fetch(self, item: pytest.Item, client: LabClient) -> tuple[str | None, str]:
        """Where the artifacts are now, if they are, and what to tell of them."""
        import httpx  # noqa: PLC0415 - slow, and loaded already where there is a client

        try:
            shown = self._shown(client.artifacts(self._directory(item)))
        except (httpx.HTTPError, RuntimeError, ValueError, OSError, pytest.fail.Exception) as error:
            message = f"the artifacts could not be fetched: {error}"
            with contextlib.suppress(Warning):  # `-W error` must not make another failure of it
                item.warn(pytest.PytestWarning(f"remote lab: {message}"))
            return None, message
        if (PROPERTY, shown) not in item.user_properties:
            item.user_properties.append((PROPERTY, shown))
        return shown, shown

    def _directory(self, item: pytest.Item) -> Path:
        name = f"{item.nodeid} {self._copy}".rstrip()
        plain = re.sub(r"[^\w.]+", "-", name, flags=re.ASCII).strip("-.")
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        return self._output / f"{plain[-NAME_LENGTH:]}-{digest[:7]}"

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self._current) if path.is_relative_to(self._current) else path)
