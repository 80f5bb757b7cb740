"""The table, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from bench.measure import Row, Sample

HEADINGS: Final = ("row", "case", "unit", "ours", "p99", "against", "median", "p99", "ratio", "target", "met", "note")
LEFT: Final = frozenset({0, 1, 2, 5, 9, 10, 11})
"""Columns of text, which are aligned to the left."""


def table(rows: Sequence[Row]) -> str:
    """All rows below each other, one line each."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    rule = "  ".join("-" * width for width in widths)
    text = [_line(line, widths) for line in lines]
    return "\n".join([text[0], rule, *text[1:]])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if column in LEFT else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    ratio = "-" if row.ratio is None else f"{row.ratio:.3f}" if row.ratio < 0.1 else f"{row.ratio:.2f}"
    return (
        *(row.name, row.case, row.unit, *_numbers(row.ours), row.reference_name, *_numbers(row.reference)),
        *(ratio, row.target.describe(row.unit), met, row.note),
    )


def _numbers(sample: Sample | None) -> tuple[str, str]:
    return (_short(sample.median), _short(sample.p99)) if sample else ("-", "-")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_json(row: Row) -> dict[str, Any]:
    """A row with all of its samples."""
    plain = asdict(row)
    for side, sample in (("ours", row.ours), ("reference", row.reference)):
        if sample:
            values = [round(value, 6) for value in sample.values]
            plain[side] = {"median": sample.median, "p99": sample.p99, "count": len(values), "values": _thin(values)}
    return {**plain, "ratio": row.ratio, "target": row.target.describe(row.unit), "met": row.met}


def _thin(values: list[float], most: int = 2000) -> list[float]:
    step = -(-len(values) // most)
    return values[::step]
