"""Asks netlab where it keeps its list of instances on this host."""

import subprocess
import threading
from pathlib import Path
from typing import Final

import yaml

from neops_remote_lab.netlab.failures import RejectionClassifier
from neops_remote_lab.netlab.process import run_netlab
from neops_remote_lab.netlab.settings import NetlabSettings

SETTING: Final = "lab_status_file"
DEFAULT: Final = "~/.netlab/status.yaml"
"""netlab's built-in default, which `netlab defaults` does not report."""


class StatusFile:
    """The path of the list for labs that run alone on their host. The first successful answer is cached."""

    def __init__(self, settings: NetlabSettings, classifier: RejectionClassifier, ended: threading.Event) -> None:
        """`ended` aborts current and future netlab commands that have no interrupt of their own."""
        self._settings = settings
        self._classifier = classifier
        self._ended = ended
        self._path: Path | None = None

    def __call__(self, interrupt: threading.Event | None = None) -> Path:
        """Return the path.

        Args:
            interrupt: once set, aborts the netlab command.

        Raises:
            subprocess.SubprocessError: netlab fails, for example because of a mistake in the host's defaults.
            The other exceptions of `run_netlab`.
        """
        if self._path is None:
            self._path = Path(self._ask(interrupt or self._ended)).expanduser()
        return self._path

    def _ask(self, interrupt: threading.Event) -> str:
        try:
            printed = run_netlab(
                ["defaults", "--format", "yaml", SETTING],
                directory=Path("/"),
                timeout=self._settings.command_timeout,
                command=self._settings.netlab,
                kill_grace=self._settings.kill_grace,
                interrupt=interrupt,
            )
        except subprocess.CalledProcessError as error:
            if f"{SETTING} not found" in str(error.stderr):
                return DEFAULT
            self._classifier.require_good_defaults(interrupt)
            raise
        try:
            return str(yaml.safe_load(printed)[SETTING])
        except (yaml.YAMLError, LookupError, TypeError):
            raise subprocess.SubprocessError("netlab does not say where it keeps its list of instances") from None
