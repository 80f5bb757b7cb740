"""Text from outside, such as labels, file names and messages of other programs: where it enters, and where it is shown.

A terminal acts on control characters: ESC and CSI start commands, CR and LF forge lines, and bidirectional overrides
make text read differently from what it is. One definition serves the whole package: a character is *printable in one
line* when `str.isprintable` says so. That holds for letters of every script, digits, punctuation, symbols, emoji and
the plain space; not for controls (C0, C1, DEL), format characters (bidirectional, zero-width), line and paragraph
separators, other spaces, surrogates, and code points that are private or not assigned.

- Refuse what is not printable where a name or label enters: `refuse_unprintable`.
- Escape it wherever a text from outside is shown to a person, in a terminal or a log: `one_line`, or `printable_lines`
  for messages of several lines. Do so even for values that were checked when they entered, since an operator or another
  version may have written to the database, and another server may be at fault.
"""

from typing import Final

ELLIPSIS: Final = "…"
ADDRESS_LENGTH: Final = 200
"""Most characters of an address that are shown."""


def unprintable(text: str) -> str | None:
    """The first character that is not printable in one line, as `U+001B`; None without any."""
    if text.isprintable():
        return None
    return next(f"U+{ord(character):04X}" for character in text if not character.isprintable())


def refuse_unprintable(what: str, text: str) -> str:
    """The text as it is, provided it is printable in one line.

    Args:
        what: the start of the error message: what the text is, for example "the label".
        text: text from outside.

    Raises:
        ValueError: with a sentence that names the first character that is not printable.
    """
    if (character := unprintable(text)) is not None:
        raise ValueError(
            f"{what} has the character {character}: control, format and separator characters are not allowed"
        )
    return text


def one_line(text: str, limit: int | None = None) -> str:
    r"""The text as it may be printed in one line: what is not printable appears as `\n`, `\x1b`, `\u202e`.

    The result is for the eye only: a backslash in the text itself is not doubled. It can always be encoded as UTF-8,
    for lone surrogates are escaped too. Escaping twice changes nothing.

    Args:
        text: text from outside.
        limit: most characters of the result; what is longer ends in an ellipsis.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]  # enough to see that it is too long: the rest need not be escaped
    shown = text if text.isprintable() else "".join(map(_escape, text))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + ELLIPSIS


def printable_lines(text: str) -> str:
    r"""As `one_line` for each line of a text: LF and CR LF remain line breaks (as LF), and a tab remains a tab."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in lines)


def hide_secrets(url: str) -> str:
    """An address of any form as it may be shown: without user name, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = rest.rpartition("@")[2].partition("?")[0].partition("#")[0]
    return one_line(scheme + separator + rest, ADDRESS_LENGTH)


def _escape(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]
