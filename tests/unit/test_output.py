"""Cleaning of program output that arrives in pieces."""

import io
import re

import pytest

from neops_remote_lab.netlab.output import CUT, MAX_LINE_BYTES, TAIL_BYTES, Lines, last_lines, scrub, tail
from tests.corpora import TRACEBACKS, UNPRINTABLE

every_traceback = pytest.mark.parametrize("printed", TRACEBACKS.values(), ids=TRACEBACKS)


def shown_in_pieces(*pieces: bytes) -> str:
    lines = Lines()
    parts = [part for piece in pieces for line in lines.feed(piece) for part in line]
    return "\n".join(parts + [part for line in lines.feed(b"", last=True) for part in line])


@every_traceback
def test_a_traceback_is_hidden_and_its_cause_is_shown(printed: str) -> None:
    shown = scrub(printed)
    assert "HIDDEN" not in shown
    assert "/usr" not in shown
    assert "\x1b" not in shown
    assert shown.count("shown") == printed.count("shown")


@every_traceback
def test_a_traceback_may_arrive_in_any_pieces(printed: str) -> None:
    data = printed.encode()
    whole = shown_in_pieces(data)
    assert whole.split() == scrub(printed).split()
    assert {shown_in_pieces(data[:cut], data[cut:]) for cut in range(len(data))} == {whole}
    assert shown_in_pieces(*(bytes([byte]) for byte in data)) == whole


@every_traceback
@pytest.mark.parametrize("where", [0.25, 0.5, 0.75])
def test_a_tail_that_begins_within_a_traceback_shows_nothing_of_it(printed: str, where: float) -> None:
    data = printed.encode()
    parts = Lines(partial=True).feed(data[int(len(data) * where) :], last=True)
    shown = "\n".join(part for line in parts for part in line)
    # the source line of a frame that was cut cannot be distinguished from a message with the same prefix
    assert len(re.findall(r"HIDDEN\(\)", shown)) <= ("[r1]" in printed or "|" in printed or "11:" in printed)


def test_the_last_lines_hide_a_traceback_that_is_longer_than_the_part_that_is_read() -> None:
    frames = '  File "/usr/lib/a.py", line 1, in run\n    HIDDEN()\n' * (TAIL_BYTES // 20)
    file = io.BytesIO(f"Traceback (most recent call last):\n{frames}RecursionError: too deep\n".encode())
    assert last_lines(file, 0) == "RecursionError: too deep"


@pytest.mark.parametrize("end", ["", "\n", " the rest\nnext\n"])
def test_a_line_without_an_end_is_cut(end: str) -> None:
    lines = Lines()
    shown = [line for _ in range(100) for line in lines.feed(b"x" * MAX_LINE_BYTES)]
    shown += lines.feed(end.encode(), last=True)
    assert shown == [["x" * MAX_LINE_BYTES + CUT], *([["next"]] if "next" in end else [])]


def test_a_tail_within_one_line_is_marked() -> None:
    assert last_lines(io.BytesIO(b"x" * 3 * TAIL_BYTES), 0) == CUT.strip()


def test_carriage_returns_split_a_line_into_parts() -> None:
    assert Lines().feed(b"10%\r20%\rdone\r\nnext\n") == [["10%", "20%", "done"], ["next"]]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b2Jgone", "gone"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]52;c;aGFsbG8=\x1b\\text", "text"),
        ("\x1bPq#0\x1b\\text", "text"),
        ("\x1bctext", "text"),
        ("\x1b]0;no end", "0;no end"),
        ("a\tb", "a\tb"),
        ("a\x00b\x07c\x08d", r"a\x00b\x07c\x08d"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
    ],
)
def test_control_sequences_for_terminals_are_removed(printed: str, shown: str) -> None:
    assert scrub(printed) == shown


@pytest.mark.parametrize("character", UNPRINTABLE.values(), ids=UNPRINTABLE)
def test_a_control_character_other_than_a_tab_is_never_shown(character: str) -> None:
    assert character == "\t" or character not in Lines().feed(f"a{character}b\n".encode())[0]


@pytest.mark.parametrize("piece", ["\x1b]", "\x9d", "\x1b[0", "/-", '  File "', "Traceback ", "\\n ", "a" * 7 + "/"])
def test_no_text_takes_long_to_clean(piece: str) -> None:
    # a pattern of quadratic cost would take minutes here
    lines = Lines()
    for _ in range(50):
        lines.feed((piece * MAX_LINE_BYTES)[:MAX_LINE_BYTES].encode() + b"\n")


@pytest.mark.parametrize(
    ("printed", "cause"),
    [
        (
            "[CONFIG]  r1: initial\nErrors encountered while processing x.yml\nMissingValue in nodes: No device type\n"
            "Fatal error in netlab: Cannot proceed beyond this point due to errors, exiting\n",
            "MissingValue in nodes: No device type",
        ),
        (
            "22:05:01 INFO Creating container\n22:05:02 ERRO no such image\nError executing containerlab deploy\n"
            "Fatal error in netlab up: containerlab deploy failed, aborting...\n",
            "22:05:02 ERRO no such image",
        ),
        ("fatal: [r1]: UNREACHABLE!\nPLAY RECAP\nr1 : ok=0\n", "fatal: [r1]: UNREACHABLE!"),
        ("one\ntwo\n", "one"),
    ],
)
def test_the_cause_of_a_failure_comes_first(printed: str, cause: str) -> None:
    shown = tail(printed).split("\n")
    assert shown[0] == cause
    assert shown.count(cause) == 1
    assert not [line for line in shown if line.startswith("[CONFIG]")]
