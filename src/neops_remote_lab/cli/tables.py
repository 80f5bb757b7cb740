"""Formats tables for a terminal."""

from collections.abc import Iterable, Sequence
from typing import Final

from neops_remote_lab.core.text import one_line

CELL_WIDTH: Final = 60
"""Maximum width of a cell; longer text is cut."""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format rows as aligned lines. Untrusted text in cells is escaped."""
    cells = [tuple(headings), *(tuple(one_line(cell, CELL_WIDTH) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "".join(f"{line}\n" for line in lines)
