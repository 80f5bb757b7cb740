"""Escaping and shortening of untrusted text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neops_remote_lab.core.text import fit, hide_secrets, one_line, printable_lines, refuse_unprintable, unprintable
from tests.corpora import UNPRINTABLE

ORDINARY = [
    "",
    "ada@laptop",
    "two words",
    "über",
    "Владимир",
    "テスト",
    "日本語",
    "🚀",
    "naïve café",
    "<b>&amp;</b>",
    "a\\b",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert unprintable(text) is None
    assert refuse_unprintable("the label", text) == one_line(text) == printable_lines(text) == text


@pytest.mark.parametrize("character", UNPRINTABLE.values(), ids=UNPRINTABLE.keys())
def test_control_characters_are_named_and_escaped(character: str) -> None:
    text = f"a{character}b"
    assert unprintable(text) == f"U+{ord(character):04X}"
    with pytest.raises(ValueError, match=rf"the label has the character U\+{ord(character):04X}"):
        refuse_unprintable("the label", text)
    assert one_line(text).startswith("a\\")
    assert one_line(text).endswith("b")


@given(st.text(st.characters(codec=None)))
def test_one_line_is_always_printable_and_can_be_encoded(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    shown.encode()  # raises for a surrogate
    assert one_line(shown) == shown
    assert all(line.replace("\t", "").isprintable() for line in printable_lines(text).split("\n"))


@pytest.mark.parametrize(
    ("text", "shown"), [("a\r\nb", "a\\r\\nb"), ("\x1b[31mred", "\\x1b[31mred"), ("\u202e", "\\u202e")]
)
def test_escapes_are_those_of_python(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text(st.characters(codec=None)), st.integers(1, 20))
def test_a_limit_cuts_the_text(text: str, limit: int) -> None:
    shown = one_line(text, limit)
    assert len(shown) <= limit
    assert shown == one_line(text) or shown.endswith("…")


def test_line_breaks_and_tabs_of_a_message_remain() -> None:
    assert printable_lines("first\r\n\tsecond\rforged\n\x1b[2J") == "first\n\tsecond\\rforged\n\\x1b[2J"


@pytest.mark.parametrize(
    "url",
    ["https://user:s3cret@lab/x", "https://lab/x?token=s3cret", "https://lab/x#s3cret", "https://u:p@s3cret@lab/x"],
)
def test_an_address_is_shown_without_secrets(url: str) -> None:
    assert hide_secrets(url) == "https://lab/x"


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301te\u0301", 3, "e\u0301te\u0301"),
        ("a\nb\x1b[31m", 4, "a\\n…"),
        ("x", 0, ""),
        ("xy", 1, "…"),
    ],
)
def test_a_text_fits_into_the_columns_of_a_terminal(text: str, columns: int, expected: str) -> None:
    assert fit(text, columns) == expected
