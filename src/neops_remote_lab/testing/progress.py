"""Passes the progress of pytest-xdist workers on to the controller."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from neops_remote_lab.client.progress import Progress
from neops_remote_lab.models.session import SessionStatusResponseDto


class RelayedProgress(Progress):
    """The progress of a pytest-xdist worker, sent to the controller.

    Args:
        send: sends a call to the controller, in types that execnet supports. It may raise OSError after the controller
            has closed the channel.
    """

    def __init__(self, send: Callable[[tuple[str, Any]], object]) -> None:
        self._send = send

    def note(self, text: str) -> None:
        self._relay("note", text)

    def queued(self, status: SessionStatusResponseDto) -> None:
        self._relay("queued", status.model_dump(mode="json"))

    def start(self, lab: str) -> None:
        self._relay("start", lab)

    def phase(self, phase: str) -> None:
        self._relay("phase", phase)

    def keep(self, lab: str, seconds: float) -> None:
        self._relay("keep", (lab, seconds))

    def idle(self) -> None:
        self._relay("idle", None)

    def _relay(self, name: str, argument: Any) -> None:
        with suppress(OSError):
            self._send((name, argument))


def repeat(call: tuple[str, Any], progress: Progress) -> None:
    """Repeat a call that a `RelayedProgress` has sent."""
    match call:
        case "queued", status:
            progress.queued(SessionStatusResponseDto.model_validate(status))
        case "idle", _:
            progress.idle()
        case "keep", (lab, seconds):
            progress.keep(lab, seconds)
        case ("note" | "start" | "phase") as name, argument:
            getattr(progress, name)(argument)
