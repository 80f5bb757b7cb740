"""What a client reports during a wait: the position in the queue, and the phases of a start."""

from __future__ import annotations

import httpx
import pytest

from neops_remote_lab.client.events import events_of
from neops_remote_lab.client.start_phases import phase_of
from neops_remote_lab.client.waiting import duration, sentence
from neops_remote_lab.core.codes import SessionState
from neops_remote_lab.models.session import SessionStatusResponseDto


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("Creating configuration files", "creating configuration files"),
        ("Checking virtualization provider installation", "checking virtualization provider installation"),
        ("Starting clab nodes", "starting clab nodes"),
        ("  Starting libvirt nodes  ", "starting libvirt nodes"),
        ("Deploying initial device configurations", "deploying initial device configurations"),
        ("OK: Lab devices configured", "lab devices configured"),
        ("[CREATED] provider configuration file: clab.yml", None),
        ("INFO Starting clab nodes", None),
        ("", None),
    ],
)
def test_a_phase_has_the_words_of_netlab(line: str, phase: str | None) -> None:
    assert phase_of(line) == phase


def test_events_may_arrive_in_any_pieces() -> None:
    text = b"id: 1\ndata: one\ndata: two\n\n: still here\n\ndata: a\x0bb\xe2\x80\xa8\n\nevent: end\ndata: too slow\n\n"
    for size in (1, 7, len(text)):
        pieces = (text[start : start + size] for start in range(0, len(text), size))
        read = list(events_of(httpx.Response(200, content=pieces)))
        assert read == [("message", "one\ntwo", "1"), ("message", "a\x0bb\u2028", ""), ("end", "too slow", "")]


@pytest.mark.parametrize(
    ("eta", "waited", "expected"),
    [
        (None, 0, "position 2 in the queue, ann holds it"),
        (75, 0, "position 2 in the queue, about 75 s, ann holds it"),
        (600, 300, "position 2 in the queue, about 5 min, ann holds it"),
        (60, 60, "position 2 in the queue, ann holds it"),
    ],
)
def test_the_estimated_wait_shrinks_with_time(eta: float | None, waited: float, expected: str) -> None:
    status = SessionStatusResponseDto(
        status=SessionState.WAITING, position=2, eta_seconds=eta, waiting_for="ann holds it"
    )
    assert sentence(status, waited) == expected


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
