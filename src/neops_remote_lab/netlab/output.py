"""Cleans netlab's output for clients: removes tracebacks, paths of this host and terminal control sequences.

A line ends with LF. A carriage return, as progress bars print it, ends a part of a line; each part is treated like a
line, because terminals show it as one.
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from neops_remote_lab.core.text import one_line

MAX_LINE_BYTES: Final = 16_384
"""Longer lines are cut."""
CUT: Final = " … (the line was cut)"
PIECE_BYTES: Final = 32 * 1024
"""Number of bytes scrubbed at a time. Small, so that other threads, such as the event loop, get to run in between."""
TAIL_LINES: Final = 20
"""Number of last lines that are reported for a failure."""
TAIL_BYTES: Final = 65_536
"""Number of bytes read to find them. A traceback that begins earlier is recognised by its frames."""

_HEADER = re.compile(
    r"(?P<prefix>.*?)(?P<group>\+ Exception Group )?Traceback \(most recent call last\):\s*$"  # at the start of a line
)
_FRAME = re.compile(r'(?P<prefix>.*?)  File "[^"]*", line \d+')
_LINK = re.compile(
    r"(?:During handling of the above exception, another exception occurred"
    r"|The above exception was the direct cause of the following exception):\s*$"
)
# Ansible prints tracebacks inside JSON strings, with `\n`, `\"` and `\\` as escapes.
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
    r"(?:\d[\d:T.+-]* |time=\S+ )?"  # timestamp of containerlab
    r"(?:ERRO(?:R\b|\b)|level=error|fatal: \[|Fatal ?[Ee]rror in|(?:Incorrect|Missing)\w+ in|\w+Error(?: in|:))"
)
"""The beginning of a line that states the cause of a failure, in netlab, containerlab, Ansible or Python."""
_PROGRESS = re.compile(r"\[CONFIG\]|Created ")


class Scrubber:
    """Cleans an output line by line. It remembers whether the current line is inside a traceback."""

    def __init__(self, *, inside: bool = False) -> None:
        """`inside`: the first line may belong to a traceback that began earlier."""
        self._prefix: str | None = "" if inside else None  # the prefix of each line of the current traceback

    def line(self, text: str) -> list[str]:
        """The visible parts of a line, without line ends; an empty list if the whole line is hidden."""
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
        """Whether a line continues a traceback: it is blank, or indented after the traceback's prefix."""
        if not text.strip():
            return True
        before, after = text[: len(prefix)], text[len(prefix) :]
        if _DIGIT.sub("0", before.rstrip()) == _DIGIT.sub("0", prefix.rstrip()):  # timestamps differ between lines
            return not after.strip() or after[0].isspace()
        return text[0].isspace() and bool(prefix.strip())


class Lines:
    """Splits an output that arrives in pieces into lines and scrubs them. Buffers at most `MAX_LINE_BYTES`."""

    def __init__(self, *, partial: bool = False) -> None:
        """`partial`: the first piece does not begin at the start of the output."""
        self._scrubber = Scrubber(inside=partial)
        self._line = bytearray()
        self._skipping = partial  # up to the next end of a line
        self._none_ended = partial

    def feed(self, data: bytes, *, last: bool = False) -> list[list[str]]:
        """The lines completed by `data`, each as a list of visible parts; lines without a visible part are omitted.

        `last`: no more data follows, so an unfinished line counts as complete.
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
        if last and self._none_ended:  # everything was part of one line
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
    """An output without what clients must not see."""
    scrubber = Scrubber()
    return "\n".join(shown for line in text.split("\n") for shown in scrubber.line(line))


def tail(text: str) -> str:
    """The last lines of an output, scrubbed. If a line states the cause of the failure, it comes first."""
    return _last(scrub(text).split("\n"))


def last_lines(file: IO[bytes], start: int) -> str:
    """As `tail`, for the content of a file from the position `start` on."""
    begin = max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES)
    file.seek(begin)
    lines = Lines(partial=begin > start).feed(file.read(TAIL_BYTES), last=True)
    return _last([part for line in lines for part in line])


def end_of_log(log: Path, most: int) -> bytes:
    """The last `most` bytes of a log, scrubbed; empty if the log does not exist."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - most)
        file.seek(begin)
        scrubbed = Lines(partial=begin > 0)
        shown: list[list[str]] = []
        while data := file.read(PIECE_BYTES):
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
