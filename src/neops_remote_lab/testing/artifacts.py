"""Fetches the artifacts of failed lab tests while their lab is still running, into one directory per test."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from neops_remote_lab.testing import neighbours, xdist
from neops_remote_lab.testing.sources import OFF, ON, Sources

if TYPE_CHECKING:
    from neops_remote_lab.testing.session import LabClient

SECTION: Final = "remote lab artifacts"
"""Title of the section in the report of a failure."""
PROPERTY: Final = "remote_lab_artifacts"
"""Name of the property in JUnit XML."""
OUTPUT: Final = "remote-lab-artifacts"
"""Default directory, below the root of the project."""
NAME_LENGTH: Final = 150
"""Maximum length of a test's name in its directory name, because file systems limit names."""


class ArtifactKeeper:
    """Fetches artifacts for tests according to the settings of the run.

    Args:
        config: the configuration of the pytest run.

    Raises:
        ValueError: a setting is invalid; the message names its source.
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
        """Path and report text of what was fetched for the current test; None before that."""

    def begin(self, item: pytest.Item) -> None:
        """Remove artifacts of a test from an earlier run, but not from an earlier attempt in this run."""
        self._kept = None
        if self._mode != OFF and item.nodeid not in self._begun:
            self._begun.add(item.nodeid)
            shutil.rmtree(self._directory(item), ignore_errors=True)

    def keep(self, item: pytest.Item, report: pytest.TestReport, client: LabClient) -> str | None:
        """Fetch the artifacts of a test's lab, if the settings ask for them, and add their path to the test's report.

        Never raises: errors become a warning and a line in the report.

        Returns:
            The path of the artifacts; None if there are none.
        """
        wanted = self._mode == ON or (self._mode != OFF and report.failed)
        if not wanted or not hasattr(client, "artifacts"):  # a client from a conftest file may not support it
            return None
        if report.failed:
            neighbours.stop_timer(item)  # pytest-timeout itself does this later, after the report
        if self._kept is None:
            self._kept = self._fetch(item, client)
        path, told = self._kept
        report.sections.append((SECTION, told))
        return path

    def _fetch(self, item: pytest.Item, client: LabClient) -> tuple[str | None, str]:
        """Fetch the artifacts. Returns their path, or None, and a text for the report."""
        import httpx  # noqa: PLC0415 - slow, but already loaded if there is a client

        try:
            shown = self._shown(client.artifacts(self._directory(item)))
        except (httpx.HTTPError, RuntimeError, ValueError, OSError, pytest.fail.Exception) as error:
            message = f"the artifacts could not be fetched: {error}"
            with contextlib.suppress(Warning):  # with `-W error` the warning must not fail the test
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
