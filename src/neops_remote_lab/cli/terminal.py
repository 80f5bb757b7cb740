"""The user's terminal while a program elsewhere has it: every key goes there, but for escape sequences."""

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
HELP: Final = "\r\nAt the start of a line:\r\n ~.  leave the console\r\n ~~  send the character ~\r\n ~?  show this\r\n"


class Action(Enum):
    """What an escape sequence asks for."""

    LEAVE = auto()
    HELP = auto()


_ACTIONS: Final = {ord("."): Action.LEAVE, ord("?"): Action.HELP}


class Escapes:
    """Finds the escape sequences in what a user types: `~` at the start of a line, and one more character."""

    def __init__(self) -> None:
        self._at_line_start = True
        self._escaped = False

    def feed(self, typed: bytes) -> Iterator[bytes | Action]:
        """What is to be sent and done, in order. A `~` at the start of a line waits for the next character."""
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
    """Meanwhile a terminal hands on each key as it is typed, and prints what it gets as it is.

    Where the descriptor is no terminal, this does nothing.
    """
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)  # what was typed meanwhile is kept
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def size() -> os.terminal_size | None:
    """Columns and rows of the terminal; None without one."""
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        try:
            return os.get_terminal_size(stream.fileno()) if stream else None
        except (OSError, ValueError):  # not a terminal, or closed
            continue
    return None
