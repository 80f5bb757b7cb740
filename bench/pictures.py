"""SVG charts of rows that were measured with several sizes, with a logarithmic axis."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from bench.measure import Row

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 210, 40, 50
COLOURS: Final = ("#1b6ca8", "#d1495b", "#3a7d44", "#8d5b9f", "#c78b1c", "#4f5d75")


class Line(NamedTuple):
    """One line of a chart: its name, and a value for each x."""

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool


def draw_all(rows: Iterable[Row], directory: Path, prefix: str) -> list[Path]:
    """Draw a chart for each `chart` and unit with at least two values of x. Returns the files."""
    charts: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.chart and row.x is not None and row.ours:
            charts[row.chart, row.unit].append(row)
    drawn = []
    for (chart, unit), found in charts.items():
        lines = _lines(found)
        if any(len(line.points) > 1 for line in lines):
            name = f"{chart} {unit}".replace(" ", "-").replace("%", "percent")
            path = directory / f"{prefix}-{name}.svg"
            path.write_text(draw(f"{chart}, {unit} (median; dotted: p99)", lines), encoding="utf-8")
            drawn.append(path)
    return drawn


def _lines(rows: Sequence[Row]) -> list[Line]:
    points: dict[tuple[str, bool], dict[float, float]] = defaultdict(dict)
    for row in rows:
        assert row.x is not None
        for side, sample in ((row.line, row.ours), (f"{row.line}, {row.reference_name}", row.reference)):
            if sample:
                points[side, False][row.x] = sample.median
                points[side, True][row.x] = sample.p99
    return [Line(name, tuple(sorted(found.items())), dashed) for (name, dashed), found in points.items()]


def draw(title: str, lines: Sequence[Line]) -> str:
    """A chart as SVG."""
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points if y > 0]
    low, high = math.floor(math.log10(min(ys, default=1))), math.ceil(math.log10(max(ys, default=10)))
    high = max(high, low + 1)

    def across(x: float) -> float:
        span = math.log10(xs[-1] / xs[0]) or 1
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(x / xs[0]) / span

    def down(y: float) -> float:
        share = (math.log10(max(y, 10.0**low)) - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [_text(LEFT, 24, title, size=14)]
    for power in range(low, high + 1):
        parts += [_rule(LEFT, down(10.0**power), WIDTH - RIGHT, down(10.0**power))]
        parts += [_text(LEFT - 8, down(10.0**power) + 4, f"{10.0**power:g}", anchor="end")]
    for x in xs:
        parts += [_rule(across(x), TOP, across(x), HEIGHT - BOTTOM)]
        parts += [_text(across(x), HEIGHT - BOTTOM + 18, f"{x:g}", anchor="middle")]
    names = list(dict.fromkeys(line.name for line in lines))
    for line in lines:
        colour = COLOURS[names.index(line.name) % len(COLOURS)]
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line.points)
        dashes = ' stroke-dasharray="2 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
    for place, name in enumerate(names):
        colour = COLOURS[place % len(COLOURS)]
        parts.append(_text(WIDTH - RIGHT + 14, TOP + 14 + 18 * place, name, colour=colour))
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([frame, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start", colour: str = "#333") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
    )
