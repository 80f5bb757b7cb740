"""Classification of netlab's failures."""

from __future__ import annotations

import errno
import subprocess
import threading
from pathlib import Path

import pytest

from neops_remote_lab.api.errors import STATUS
from neops_remote_lab.labs.refusals import Reason, refusal_of
from neops_remote_lab.netlab.failures import RejectionClassifier

REJECTION = "MissingValue in nodes: No device type specified for node a"


def _answer(exit_status: int, output: str, probe: str | None = None) -> tuple[int, str]:
    """Status and detail of the answer to a request whose `netlab create` has failed.

    Args:
        probe: output of `netlab create` for a valid topology; it succeeds if None.
    """

    def create(_scratch: Path, _interrupt: threading.Event) -> None:
        if probe:
            raise subprocess.CalledProcessError(1, "netlab", stderr=probe)

    error = subprocess.CalledProcessError(exit_status, "netlab", stderr=output)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the caller checks the answer
        RejectionClassifier(create).raise_cause(error, threading.Event(), memory=1000)
    refused = refusal_of(raised.value)
    return STATUS[refused.reason], str(refused)


@pytest.mark.parametrize(
    ("exit_status", "output", "probe", "status", "message"),
    [
        pytest.param(1, REJECTION, None, 422, REJECTION, id="the topology"),
        pytest.param(1, REJECTION, "Cannot read YAML", 500, "own netlab defaults are at fault", id="the defaults"),
        pytest.param(1, "MemoryError", None, 507, "--max-create-bytes", id="memory"),
        pytest.param(1, "OSError: [Errno 28] No space left on device", None, 507, "disk of the lab host", id="disk"),
        pytest.param(-9, "", None, 500, "exit status -9", id="killed"),
        pytest.param(2, "netlab create: error: unrecognized arguments", None, 500, "exit status 2", id="arguments"),
    ],
)
def test_only_errors_of_the_topology_are_422(
    exit_status: int, output: str, probe: str | None, status: int, message: str
) -> None:
    answered, detail = _answer(exit_status, output, probe)
    assert answered == status
    assert message in detail


def test_a_full_disk_in_the_server_is_507_too() -> None:
    refused = refusal_of(OSError(errno.ENOSPC, "No space left on device", "/srv/labs/x"))
    assert STATUS[refused.reason] == 507


def test_a_host_that_cannot_start_processes_is_not_reported_as_busy() -> None:
    refused = refusal_of(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"))
    assert STATUS[refused.reason] == 500


def test_every_reason_has_a_status() -> None:
    assert STATUS.keys() == set(Reason)


def test_the_defaults_of_the_host_are_checked_once_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checks: list[Path] = []
    classifier = RejectionClassifier(lambda scratch, _interrupt: checks.append(scratch))
    for content in ("", "device: frr", "device: linux"):
        (tmp_path / ".netlab.yml").write_text(content)
        for _ in range(2):
            with pytest.raises(ValueError, match="No device type"):
                classifier.raise_cause(subprocess.CalledProcessError(1, "netlab", stderr=REJECTION), threading.Event())
    assert len(checks) == 3
