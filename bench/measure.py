"""Samples, rows of the table, and the exception for a failed measurement."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

PEER: Final = "peer 1.4.0"


class BenchError(Exception):
    """The measurement is invalid."""


def require(condition: object, message: str) -> None:
    """Raise `BenchError` unless the condition holds."""
    if not condition:
        raise BenchError(message)


@dataclass(frozen=True)
class Sample:
    """The samples of a repeated measurement."""

    values: Sequence[float]

    def __post_init__(self) -> None:
        require(self.values, "nothing was measured")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The 99th percentile; of fewer than 100 samples, the maximum."""
        return sorted(self.values)[math.ceil(0.99 * len(self.values)) - 1]

    def scaled(self, factor: float) -> "Sample":
        return Sample([factor * value for value in self.values])


@dataclass(frozen=True)
class Target:
    """The target of a row.

    Attributes:
        ratio: limit of ours / reference.
        sense: whether the ratio should be at most or at least that.
        of: the statistic of both samples that is divided.
        ceiling: limit of our own p99, in the row's unit.
        excess: limit of our median minus the reference's, in the row's unit.
    """

    ratio: float | None = None
    sense: Literal["≤", "≥"] = "≤"
    of: Literal["median", "p99"] = "median"
    ceiling: float | None = None
    excess: float | None = None

    def describe(self, unit: str) -> str:
        """The target as a short text."""
        parts = [] if self.ratio is None else [f"{self.sense} {self.ratio:g}{' of p99' if self.of == 'p99' else ''}"]
        parts += [] if self.ceiling is None else [f"p99 ≤ {self.ceiling:g} {unit}"]
        parts += [] if self.excess is None else [f"≤ {self.excess:g} {unit} more"]
        return ", ".join(parts) or "-"


@dataclass(frozen=True)
class Row:
    """One line of the table, and with `chart`, `line` and `x` a point of a chart."""

    name: str
    case: str
    unit: str
    ours: Sample | None
    reference_name: str
    reference: Sample | None = None
    target: Target = field(default_factory=Target)
    given_ratio: float | None = None
    given_excess: float | None = None
    """The difference from the reference, if it is not that of the medians."""
    note: str = ""
    chart: str = ""
    line: str = ""
    x: float | None = None

    @property
    def ratio(self) -> float | None:
        """Our value divided by the reference: of rates if the row has them, otherwise of the target's statistic."""
        if self.given_ratio is not None:
            return self.given_ratio
        if self.ours is None or self.reference is None:
            return None
        ours, reference = getattr(self.ours, self.target.of), getattr(self.reference, self.target.of)
        return float(ours / reference) if reference else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none or its data is missing."""
        goal, verdicts = self.target, list[bool]()
        if goal.ratio is not None:
            if self.ratio is None:
                return None
            # Rounded as shown, so that noise does not fail a limit of 1.00.
            shown = round(self.ratio, 2)
            verdicts.append(shown <= goal.ratio if goal.sense == "≤" else shown >= goal.ratio)
        if goal.ceiling is not None and self.ours:
            verdicts.append(self.ours.p99 <= goal.ceiling)
        if goal.excess is not None and self.ours and self.reference:
            excess = self.ours.median - self.reference.median if self.given_excess is None else self.given_excess
            verdicts.append(excess <= goal.excess)
        return all(verdicts) if verdicts else None
