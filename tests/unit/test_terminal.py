"""Escape sequences of a console, and the state of its terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import termios

import pytest

from neops_remote_lab.cli.terminal import Action, Escapes, raw_mode


def typed(*pieces: bytes) -> list[bytes | Action]:
    """The actions in pieces of input, and the text between them."""
    escapes, found = Escapes(), list[bytes | Action]()
    for piece in pieces:
        for part in escapes.feed(piece):
            if isinstance(part, bytes) and found and isinstance(found[-1], bytes):
                found[-1] += part
            else:
                found.append(part)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"show version\r", [b"show version\r"]),
        (b"~.", [Action.LEAVE]),
        (b"exit\r~.", [b"exit\r", Action.LEAVE]),
        (b"exit\n~.", [b"exit\n", Action.LEAVE]),
        (b"~?ls\r", [Action.HELP, b"ls\r"]),
        (b"~?~.", [Action.HELP, Action.LEAVE]),
        (b"~~.", [b"~."]),
        (b"~~~.", [b"~~."]),
        (b"~x", [b"~x"]),
        (b"~\r~.", [b"~\r", Action.LEAVE]),
        (b"cd ~.", [b"cd ~."]),
        (b"a~.\r", [b"a~.\r"]),
        (b"\xff~.", [b"\xff~."]),
    ],
)
def test_a_tilde_counts_at_the_start_of_a_line(text: bytes, expected: list[bytes | Action]) -> None:
    assert typed(text) == expected
    assert typed(*(text[index : index + 1] for index in range(len(text)))) == expected


def test_a_tilde_waits_for_the_next_character() -> None:
    assert list(Escapes().feed(b"~")) == []


def test_the_terminal_is_restored_after_an_error() -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        with contextlib.suppress(ValueError), raw_mode(theirs):
            assert termios.tcgetattr(theirs) != before
            raise ValueError("trouble")
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_input_that_is_not_a_terminal_is_not_changed() -> None:
    reading, writing = os.pipe()
    with raw_mode(reading):
        os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
