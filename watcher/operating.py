"""Where to stand between filing much and filing wrong: the thresholds in force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from watcher.checkpoint import Checkpoint
from watcher.decide import Policy
from watcher.errors import Exit, Fatal
from watcher.settings import Review

Point = Mapping[str, float]
"""Thresholds with the ``accept_rate`` they were fitted for and the ``wrong_rate`` that was measured at them."""


def policy(review: Review, weights: Checkpoint) -> Policy:
    """What the operator asks for, else what was fitted with the weights.

    A limit on the wrong rate alone takes the fitted point or a stricter one.

    Raises:
        Fatal: exit code 3; the weights know no such point.
    """
    point: Point = weights.thresholds
    if review.accept_rate is not None or review.max_wrong_rate is not None:
        points = weights.operating
        if review.accept_rate is None:  # a limit on what is wrong must not let more through than without it
            points = tuple(p for p in points if p["max_distance"] <= point.get("max_distance", math.inf))
        chosen = choose(points, review.accept_rate, review.max_wrong_rate)
        if chosen is None:
            raise Fatal(
                f"the weights {weights.name} have no operating point for review.accept_rate "
                f"{_told(review.accept_rate)} and review.max_wrong_rate {_told(review.max_wrong_rate)}",
                _offer(weights.operating),
                Exit.CONFIG,
            )
        point = chosen
    fitted = point.get("min_confidence", 0.5)
    return Policy(
        weights.classes,
        fitted if review.min_confidence is None else review.min_confidence,
        weights.thresholds.get("temperature", 1.0),
        point.get("max_distance", math.inf),
        review_blank=review.blank_images,
    )


def choose(points: Sequence[Point], accept_rate: float | None, max_wrong_rate: float | None) -> Point | None:
    """The operating point that an operator asks for, or None where no point is like that.

    ``accept_rate`` is the least share of images like those of the training data
    that is to be filed, ``max_wrong_rate`` the largest share of wrong ones among
    the filed images of sources that were not trained on. Of the points that fit,
    the one that sends most to review; with ``max_wrong_rate`` alone, the one
    that sends least.
    """
    fits = [
        point
        for point in points
        if (accept_rate is None or point["accept_rate"] >= accept_rate)
        and (max_wrong_rate is None or point["wrong_rate"] <= max_wrong_rate)
    ]
    best = max if accept_rate is None else min
    return best(fits, key=lambda point: point["accept_rate"], default=None)


def _told(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _offer(points: Sequence[Point]) -> str:
    if not points:
        return "These weights carry none: leave both null, and set review.min_confidence if need be."
    known = ", ".join(f"{p['accept_rate']:g} (wrong {p['wrong_rate']:.4f})" for p in points)
    return f"Choose among their accept rates: {known}."
