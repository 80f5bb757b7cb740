"""What netlab prints, fit to be shown to other people: without tracebacks, paths of this host and terminal commands.

A line of netlab ends with LF. A carriage return within it ends a part of the line, as progress bars print them; each
part is looked at as if it were a line, since readers take it for one.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from neops_remote_lab.core.text import one_line

MAX_LINE_BYTES: Final = 16_384
"""A line is cut after so many bytes."""
CUT: Final = " … (the line was cut)"
PIECE_BYTES: Final = 32 * 1024
"""So much is scrubbed at a time: short enough to leave the processor to the event loop in between."""
TAIL_LINES: Final = 20
"""Lines at the end of an output that explain a failure."""
TAIL_BYTES: Final = 65_536
"""Bytes that are read to find them. A traceback whose head is further away than that is recognised by its frames."""

_HEADER = re.compile(
    r"(?P<prefix>.*?)(?P<group>\+ Exception Group )?Traceback \(most recent call last\):\s*$"  # at the start of a line
)
_FRAME = re.compile(r'(?P<prefix>.*?)  File "[^"]*", line \d+')
_LINK = re.compile(
    r"(?:During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception):\s*$"
)
# Ansible prints tracebacks within JSON: `\n` and `\"` as two characters, a backslash doubled.
_QUOTED = re.compile(
    r"Traceback \(most recent call last\):(?:\\r)?(?:\\n|$)(?:(?:[ ]|\\t)(?:[^\\]|\\[^n])*(?:\\n|\\?$)|\\n)*"
)
_DIGIT = re.compile(r"\d")
_ABSOLUTE_PATH = re.compile(r"(?<![\w/.:])/(?:[\w.@+~-]+/)+([\w.@+~-]*)")
_TERMINAL_COMMAND = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|(?:\x1b[\]P^_X]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"  # titles, clipboard, links
    r"|\x1b[ -/]*[0-~]"
)


_CAUSE = re.compile(
    r"(?:\d[\d:T.+-]* |time=\S+ )?"  # containerlab begins its lines with a time
    r"(?:ERRO(?:R\b|\b)|level=error|fatal: \[|Fatal ?[Ee]rror in|(?:Incorrect|Missing)\w+ in|\w+Error(?: in|:))"
)
"""How lines begin that say why something failed: in netlab, containerlab, Ansible and Python."""
_PROGRESS = re.compile(r"\[CONFIG\]|Created ")


class Scrubber:
    """Takes one line of an output after the other, and gives what may be shown of it."""

    def __init__(self, *, inside: bool = False) -> None:
        """`inside`: the first line may belong to a traceback that began before it."""
        self._prefix: str | None = "" if inside else None  # what each line of the traceback begins with

    def line(self, text: str) -> list[str]:
        """The parts of a line that may be shown, each without its end; nothing where all of it is hidden."""
        return [shown for part in text.removesuffix("\r").split("\r") if (shown := self._part(part)) is not None]

    def _part(self, text: str) -> str | None:
        if "\x1b" in text or not text.isprintable():
            text = "\t".join(map(one_line, _TERMINAL_COMMAND.sub("", text).split("\t")))
        if self._is_hidden(text):
            return None
        if "Traceback" in text:
            text = _QUOTED.sub("", text)
        return _ABSOLUTE_PATH.sub(r"\1", text) if "/" in text else text

    def _is_hidden(self, text: str) -> bool:
        if "Traceback" in text and (header := _HEADER.match(text)):
            self._prefix = header["prefix"] + ("| " if header["group"] else "")
            return True
        if '  File "' in text and (frame := _FRAME.match(text)):
            self._prefix = frame["prefix"]
            return True
        if self._prefix is not None and not self._belongs(text, self._prefix):
            self._prefix = None
        return self._prefix is not None or (text.endswith(":") and _LINK.search(text) is not None)

    @staticmethod
    def _belongs(text: str, prefix: str) -> bool:
        """Whether a line goes on with a traceback: blank, or indented below what its first line began with."""
        if not text.strip():
            return True
        before, after = text[: len(prefix)], text[len(prefix) :]
        if _DIGIT.sub("0", before.rstrip()) == _DIGIT.sub("0", prefix.rstrip()):  # times differ from line to line
            return not after.strip() or after[0].isspace()
        return text[0].isspace() and bool(prefix.strip())


class Lines:
    """Cuts an output that arrives in pieces into lines, and scrubs them. Keeps at most `MAX_LINE_BYTES` of it."""

    def __init__(self, *, partial: bool = False) -> None:
        """`partial`: the output is read from somewhere in its middle on."""
        self._scrubber = Scrubber(inside=partial)
        self._line = bytearray()
        self._skipping = partial  # up to the next end of a line
        self._none_ended = partial

    def feed(self, data: bytes, *, last: bool = False) -> list[list[str]]:
        """The lines that have ended, each as its parts; those of which nothing may be shown are left out.

        `last`: nothing follows, so a line without an end is one too.
        """
        pieces = data.split(b"\n")
        lines = []
        for number, piece in enumerate(pieces):
            if not self._skipping:
                self._line += piece[: MAX_LINE_BYTES + 1 - len(self._line)]
            ended = number < len(pieces) - 1
            too_long = len(self._line) > MAX_LINE_BYTES
            if not self._skipping and (ended or too_long or (last and self._line)):
                lines.append(self._take())
            self._skipping = not ended and (self._skipping or too_long)
            self._none_ended &= not ended
        if last and self._none_ended:  # all of it lies within one line
            lines.append([CUT.strip()])
            self._none_ended = False
        return [line for line in lines if line]

    def _take(self) -> list[str]:
        text = self._line[:MAX_LINE_BYTES].decode(errors="replace")
        cut = len(self._line) > MAX_LINE_BYTES
        self._line.clear()
        shown = self._scrubber.line(text)
        return [*shown[:-1], shown[-1] + CUT] if cut and shown else shown


def scrub(text: str) -> str:
    """An output as it may be shown."""
    scrubber = Scrubber()
    return "\n".join(shown for line in text.split("\n") for shown in scrubber.line(line))


def tail(text: str) -> str:
    """The last lines of an output, as they may be shown, the cause of a failure first where one is recognised."""
    return _last(scrub(text).split("\n"))


def last_lines(file: IO[bytes], start: int) -> str:
    """As `tail`, for what was written to a file from a position on."""
    begin = max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES)
    file.seek(begin)
    lines = Lines(partial=begin > start).feed(file.read(TAIL_BYTES), last=True)
    return _last([part for line in lines for part in line])


def end_of_log(log: Path, most: int) -> bytes:
    """The end of a log as it may be shown, at most so many bytes of it; nothing where there is no log."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - most)
        file.seek(begin)
        scrubbed = Lines(partial=begin > 0)
        shown: list[list[str]] = []
        while data := file.read(PIECE_BYTES):  # piece by piece, to leave the interpreter to other threads in between
            shown += scrubbed.feed(data)
        shown += scrubbed.feed(b"", last=True)
        return "".join(f"{part}\n" for line in shown for part in line).encode()
    return b""


def _last(lines: list[str]) -> str:
    lines = [line.rstrip() for line in lines if line.strip()]
    if cause := next((line for line in lines if _CAUSE.match(line)), None):
        others = [line for line in lines if line != cause and not _PROGRESS.match(line)]
        return "\n".join([cause, *others[1 - TAIL_LINES :]])
    return "\n".join(lines[-TAIL_LINES:])
