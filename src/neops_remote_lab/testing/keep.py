"""Keeps the lab of the first failed test for a while, so that somebody can look into it."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import httpx
import pytest

from neops_remote_lab.client.addresses import CONTAINER_CONNECTION, address_of
from neops_remote_lab.client.lab_client import RemoteLabClient
from neops_remote_lab.client.progress import Progress
from neops_remote_lab.client.state import DEFAULT_NAME, KeptSession, ProcessRecord, StateDirectory
from neops_remote_lab.client.waiting import duration
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.core.text import hide_secrets
from neops_remote_lab.models.lab import DeviceInfoDto
from neops_remote_lab.testing import options
from neops_remote_lab.testing.labs import LabSpec
from neops_remote_lab.testing.neighbours import stop_timer
from neops_remote_lab.testing.session import LabClient

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at whether the lab is still to be kept."""
QUEUE_EVERY: Final = 2.0
"""Seconds between two looks at the queue."""
PROGRAM: Final = "neops-remote-lab"


@dataclass(frozen=True)
class LabInUse:
    """The lab of a test that has failed, still running.

    Attributes:
        spec: the lab.
        client: the client that holds it.
        devices: its devices.
    """

    spec: LabSpec
    client: LabClient
    devices: Sequence[DeviceInfoDto]


class LabKeeper:
    """Keeps one lab in a run.

    Args:
        seconds: how long it is kept at most.
        progress: shows how to reach the lab, and how long it is kept.
    """

    def __init__(self, seconds: float, progress: Progress) -> None:
        self._seconds = seconds
        self._progress = progress
        self._lab: LabInUse | None = None
        self._saved: KeptSession | None = None
        self._ends_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether a lab is open to the user."""
        return self._lab is not None

    def open(self, item: pytest.Item, report: pytest.TestReport, lab: LabInUse) -> bool:
        """Show how to reach a lab, unless other sessions wait for the host; whether it is open to the user."""
        if self._lab is not None:
            return True
        name = lab.spec.name
        try:
            reason = _reason_to_end(lab.client)
            self._saved = None if reason else self._save(lab)
        except (httpx.HTTPError, OSError, ValueError) as error:
            reason = str(error)
        if reason:
            self._progress.note(f"{name} is not kept: {reason}")
            return False
        stop_timer(item)
        self._lab, self._ends_at = lab, time.monotonic() + self._seconds
        head = f"{name} is kept while the debugger runs:"
        if not item.config.option.usepdb:  # else pytest shows the failure
            self._progress.note(f"{item.nodeid} failed:\n{report.longreprtext}")
            condition = ", as long as no other session waits" if self._saved else ""
            head = f"{name} is kept for {duration(self._seconds)}{condition}:"
        self._progress.note("\n".join([head, *_hints(lab, self._saved)]))
        return True

    def wait(self) -> None:
        """Wait until the time is over, another session waits, or the user lets the lab go.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        if self._lab is None:
            return
        with self._progress.keeping(self._lab.spec.name, self._ends_at - time.monotonic()):
            reason = self._wait(self._lab.client)
        self._progress.note(f"{self._lab.spec.name} is no longer kept: {reason}")

    def close(self) -> bool:
        """Let the lab go; whether one was open to the user, who may have changed it."""
        was_open, self._lab = self._lab is not None, None
        if self._saved is not None:
            StateDirectory().forget(self._saved)
        return was_open

    def _save(self, lab: LabInUse) -> KeptSession | None:
        """Save the session for the commands of the program. Those of a local lab need none."""
        client, state = lab.client, StateDirectory()
        if not isinstance(client, RemoteLabClient):
            return None
        now = datetime.now(UTC)
        saved = KeptSession(
            url=client.base_url,
            name=DEFAULT_NAME if state.find(client.base_url) is None else f"pytest-{os.getpid()}",
            session_id=client.session_id,
            topology=str(lab.spec.path),
            origin="pytest",
            kept_since=now,
            kept_until=now + timedelta(seconds=self._seconds),
            yields=True,
            keeper=ProcessRecord.of(),
        )
        state.save(saved)
        return saved

    def _wait(self, client: LabClient) -> str:
        asked_at = time.monotonic()
        while (now := time.monotonic()) < self._ends_at:
            threading.Event().wait(min(LOOK_EVERY, self._ends_at - now))
            if self._saved is not None and not _is_saved(self._saved):
                return f"`{PROGRAM} down` has let it go"
            if now - asked_at >= QUEUE_EVERY:
                asked_at = now
                try:
                    reason = _reason_to_end(client)
                except httpx.TransportError:  # a restart of the server ends nothing
                    continue
                except httpx.HTTPError as error:
                    reason = str(error)
                if reason:
                    return reason
        return "the time is over"


def _reason_to_end(client: LabClient) -> str | None:
    """Why a lab must not be kept; None if it may. Raises httpx.HTTPError if that is not known."""
    if not isinstance(client, RemoteLabClient):
        return None
    waiting = sum(entry.status is SessionState.WAITING for entry in client.queue().sessions)
    return f"{waiting} other session{'s wait' if waiting > 1 else ' waits'} for the lab host" if waiting else None


def _is_saved(saved: KeptSession) -> bool:
    found = StateDirectory().find(saved.url, saved.name)
    return found is not None and found.session_id == saved.session_id


def _hints(lab: LabInUse, saved: KeptSession | None) -> list[str]:
    """How to reach the lab and how to let it go, one line each."""
    if saved is None:
        return [
            *(f"  {device.name}: {_local_hint(device)}" for device in lab.devices),
            "  Ctrl-C ends the run",
        ]
    flags = _flags(saved)
    node = shlex.quote(lab.devices[0].name) if lab.devices else "NODE"
    return [
        f"  {PROGRAM} console {node}{flags}",
        f"  {PROGRAM} exec {node}{flags} -- COMMAND",
        f"  {PROGRAM} devices{flags}",
        f"  {PROGRAM} down{flags}   lets the lab go, and the run goes on",
        "  Ctrl-C ends the run",
    ]


def _local_hint(device: DeviceInfoDto) -> str:
    """How to reach a device from the lab host itself."""
    address = address_of(device) or "no address"
    if device.raw.get("ansible_connection") != CONTAINER_CONNECTION:
        return address
    return f"{address}, or docker exec -it {shlex.quote(str(device.raw.get('ansible_host')))} sh"


def _flags(saved: KeptSession) -> str:
    """The flags by which the commands of the program find a session, if they do not find it by themselves."""
    flags = []
    variable = os.environ.get(options.variable("url"))
    if variable and hide_secrets(variable).rstrip("/") != saved.url:
        flags += ["--url", saved.url]
    if saved.name != DEFAULT_NAME:
        flags += ["--session", saved.name]
    return "".join(f" {word}" for word in map(shlex.quote, flags))
