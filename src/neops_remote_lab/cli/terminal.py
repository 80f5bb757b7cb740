"""The user's terminal while it is connected with a program elsewhere: raw mode, size and escape sequences."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

ESCAPE: Final = ord("~")
_LINE_ENDS: Final = frozenset(b"\r\n")
HELP: Final = "\r\nAt the start of a line:\r\n ~.  disconnect\r\n ~~  send the character ~\r\n ~?  show this\r\n"


class Action(Enum):
    """The action of an escape sequence."""

    LEAVE = auto()
    HELP = auto()


_ACTIONS: Final = {ord("."): Action.LEAVE, ord("?"): Action.HELP}


class Escapes:
    """Parses escape sequences in the input: `~` at the start of a line and one more character."""

    def __init__(self) -> None:
        self._at_line_start = True
        self._escaped = False

    def feed(self, typed: bytes) -> Iterator[bytes | Action]:
        """The input to send and the actions, in order. A `~` at the start of a line is held for the next character."""
        passed = bytearray()
        for character in typed:
            if self._escaped:
                self._escaped = False
                if (action := _ACTIONS.get(character)) is not None:
                    if passed:
                        yield bytes(passed)
                    passed.clear()
                    yield action
                    self._at_line_start = True
                    continue
                if character != ESCAPE:
                    passed.append(ESCAPE)
            elif self._at_line_start and character == ESCAPE:
                self._escaped = True
                continue
            passed.append(character)
            self._at_line_start = character in _LINE_ENDS
        if passed:
            yield bytes(passed)


@contextmanager
def raw_mode(descriptor: int) -> Iterator[None]:
    """A context in which the terminal is in raw mode. Does nothing if the descriptor is not a terminal."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)  # keep input that was typed ahead
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def size() -> os.terminal_size | None:
    """The size of the terminal; None without a terminal."""
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            return os.get_terminal_size(stream.fileno()) if stream else None
        except (OSError, ValueError):  # not a terminal, or closed
            continue
    return None
