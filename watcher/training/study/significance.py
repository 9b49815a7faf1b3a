"""Tell whether a change helped or hurt, compared with the effect of a seed alone. Pure functions of counts.

Errors are counts on the same images, so their noise grows with them. They are compared as square roots, whose noise is
the same for all counts (Anscombe 1948 on Poisson counts). The noise of a seed is pooled over all variants of a recipe,
because three seeds say next to nothing of the spread of one variant, and thirty variants do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

THRESHOLD = 3.0
"""Standard errors that a difference must exceed. Of 1000 changes without effect fewer than ten do, as tests count."""

# Median of a sample variance, in units of the true one: chi-squared of 1, 2 ... degrees of freedom, divided by them.
_MEDIANS = {1: 0.455, 2: 0.693, 3: 0.789, 4: 0.839}


@dataclass(frozen=True)
class ChangeVerdict:
    """The comparison of a variant with its control.

    ``word`` is ``helped``, ``hurt``, ``unstable`` (one run failed, and the others are not worse), ``no difference``,
    or ``too few seeds``. Errors between ``low`` and ``high`` cannot be told from the control's.
    """

    word: str
    difference: float
    low: float
    high: float


def noise(groups: Sequence[Sequence[int]]) -> float | None:
    """Return the pooled standard deviation of the square root of errors over seeds, or None without two seeds.

    It is the median over variants, so that one whose training fails now and then does not hide differences of others.
    """
    spreads = [
        variance([math.sqrt(errors) for errors in group]) / _MEDIANS.get(len(group) - 1, 1 - 2 / (9 * (len(group) - 1)))
        for group in groups
        if len(group) > 1
    ]
    return math.sqrt(median(spreads)) if spreads else None


def compare(errors: Sequence[int], control: Sequence[int], spread: float | None) -> ChangeVerdict:
    """Compare the errors by seed of a variant with those of its control; ``spread`` is that of :func:`noise`."""
    difference = fmean(errors) - fmean(control)
    if spread is None or min(len(errors), len(control)) < 2:
        return ChangeVerdict("too few seeds", difference, math.nan, math.nan)
    middle, own = (fmean(math.sqrt(count) for count in group) for group in (control, errors))
    reach = THRESHOLD * spread * math.sqrt(1 / len(errors) + 1 / len(control))
    word = "no difference" if abs(own - middle) <= reach else "helped" if own < middle else "hurt"
    if word == "hurt" and _one_failed(errors, spread) and compare(sorted(errors)[:-1], control, spread).word != "hurt":
        word = "unstable"
    return ChangeVerdict(word, difference, max(middle - reach, 0.0) ** 2, (middle + reach) ** 2)


def _one_failed(errors: Sequence[int], spread: float) -> bool:
    """Return True if the worst run is no matter of the seed. Now and then a training ends in a bad epoch."""
    *others, worst = (math.sqrt(count) for count in sorted(errors))
    return len(others) > 1 and worst - fmean(others) > THRESHOLD * spread * math.sqrt(1 + 1 / len(others))
