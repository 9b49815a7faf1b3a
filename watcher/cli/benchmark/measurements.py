"""Compute medians, percentiles and ratios, and format them as a table. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One quantity, measured one or more times."""

    name: str
    unit: str
    values: tuple[float, ...]
    digits: int = 0
    """Number of decimals shown."""

    @property
    def median(self) -> float:
        """The middle value, or the mean of the two middle values."""
        return statistics.median(self.values)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON, including every single measurement."""
        return {
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` percent of the values do not exceed (nearest rank).

    It is always one of the values, never between two of them.

    Raises:
        ValueError: no values, or ``percent`` outside of (0, 100].
    """
    ordered = sorted(values)
    if not ordered or not 0 < percent <= 100:
        raise ValueError("a percentile needs values, and a percent in (0, 100]")
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def ratios(name: str, above: Figure, below: Figure, digits: int = 2) -> Figure:
    """Divide one figure by another, run by run, so that anything that slowed down a whole run cancels out."""
    return Figure(name, "", tuple(a / b for a, b in zip(above.values, below.values, strict=True)), digits)


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` evenly spread numbers below ``total``, first and last included, or all if there are fewer."""
    if total <= count:
        return list(range(total))
    return [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]


def table(figures: Iterable[Figure]) -> str:
    """Return a line for each figure: name, median, unit, and the least and greatest value if there are several."""
    rows = [(f.name, f"{f.median:,.{f.digits}f}", f.unit, _range(f)) for f in figures]
    name, number, unit = (max((len(row[column]) for row in rows), default=0) for column in range(3))
    return "\n".join(f"{r[0]:{name}}  {r[1]:>{number}} {r[2]:{unit}}  {r[3]}".rstrip() for r in rows)


def _range(figure: Figure) -> str:
    if len(figure.values) < 2:
        return ""
    return f"({min(figure.values):,.{figure.digits}f} .. {max(figure.values):,.{figure.digits}f})"
