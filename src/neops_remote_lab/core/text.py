"""Handling of untrusted text, such as labels, file names and messages of other programs.

Terminals act on control characters: ESC and CSI start commands, CR and LF forge lines, and bidirectional overrides
change the order in which text is displayed. The whole package uses one definition: a character is *printable in one
line* when `str.isprintable` is true. These are letters of every script, digits, punctuation, symbols, emoji and the
plain space. Not printable are controls (C0, C1, DEL), format characters (bidirectional, zero-width), line and paragraph
separators, other spaces, surrogates, and private or unassigned code points.

- On input of a name or label, refuse what is not printable: `refuse_unprintable`.
- On output to a terminal or a log, escape it: `one_line`, or `printable_lines` for messages of several lines. Escape
  values that were checked on input too: an operator or another version may have written them to the database, or
  they come from another server.
"""

import unicodedata
from typing import Final

ELLIPSIS: Final = "…"
ADDRESS_LENGTH: Final = 200
"""Maximum length of a displayed address, in characters."""


def unprintable(text: str) -> str | None:
    """The first character that is not printable in one line, as `U+001B`; None if there is none."""
    if text.isprintable():
        return None
    return next(f"U+{ord(character):04X}" for character in text if not character.isprintable())


def refuse_unprintable(what: str, text: str) -> str:
    """Return the text unchanged if it is printable in one line.

    Args:
        what: what the text is, for example "the label"; the error message begins with it.
        text: untrusted text.

    Raises:
        ValueError: the text is not printable; the message names the first such character.
    """
    if (character := unprintable(text)) is not None:
        raise ValueError(
            f"{what} has the character {character}: control, format and separator characters are not allowed"
        )
    return text


def one_line(text: str, limit: int | None = None) -> str:
    r"""The text in one printable line: characters that are not printable appear as `\n`, `\x1b`, `\u202e`.

    The result is for display only: a backslash in the text itself is not doubled. It can always be encoded as UTF-8,
    because lone surrogates are escaped too. Escaping twice changes nothing.

    Args:
        text: untrusted text.
        limit: maximum length of the result in characters; longer text is cut and ends in an ellipsis.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]  # enough to see that it is too long; do not escape the rest
    shown = text if text.isprintable() else "".join(map(_escape, text))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + ELLIPSIS


def printable_lines(text: str) -> str:
    r"""As `one_line`, but for each line of a text: LF and CR LF become LF, and tabs are kept."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in lines)


def hide_secrets(url: str) -> str:
    """A URL for display, without user name, password, query and fragment. It need not be well-formed."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return one_line(scheme + separator + rest, ADDRESS_LENGTH)


def fit(text: str, columns: int) -> str:
    """As `one_line`, but at most `columns` wide on a terminal; longer text is cut and ends in an ellipsis."""
    text = one_line(text)
    if sum(map(_columns, text)) <= columns:
        return text
    used, kept = len(ELLIPSIS), list[str]()
    for character in text:
        used += _columns(character)
        if used > columns:
            break
        kept.append(character)
    return "".join(kept) + ELLIPSIS if columns > 0 else ""


def _columns(character: str) -> int:
    """The width of a character on a terminal: two columns for East Asian letters and emoji."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _escape(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
