"""Where to stand between filing much and filing wrong: the thresholds in force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from watcher.config.settings import Review
from watcher.core.errors import Exit, Fatal
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Policy

Point = Mapping[str, float]
"""Thresholds with the ``accept_rate`` they were fitted for and the ``wrong_rate`` that was measured at them."""


def policy(review: Review, weights: Checkpoint) -> Policy:
    """What the operator asks for, else what was fitted with the weights.

    A limit on the wrong rate alone takes the fitted point or a stricter one.

    Raises:
        Fatal: exit code 3; the weights know no such point.
    """
    point = _point(review, weights)
    fitted = point.get("min_confidence", 0.5)
    return Policy(
        weights.classes,
        fitted if review.min_confidence is None else review.min_confidence,
        weights.thresholds.get("temperature", 1.0),
        point.get("max_distance", math.inf),
        review_blank=review.blank_images,
    )


def review_rate(review: Review, weights: Checkpoint, fitted: float | None) -> float | None:
    """The share of images like those of validation that goes to a person; ``fitted`` is it at the fitted thresholds.

    None: not known, for the operator set a threshold of their own.

    Raises:
        Fatal: as :func:`policy`.
    """
    if review.min_confidence is not None:
        return None
    point = _point(review, weights)
    if all(point.get(name) == weights.thresholds.get(name) for name in ("min_confidence", "max_distance")):
        return fitted
    return 1 - point["accept_rate"]


def _point(review: Review, weights: Checkpoint) -> Point:
    if review.accept_rate is None and review.max_wrong_rate is None:
        return weights.thresholds
    points = weights.operating
    if review.accept_rate is None:  # a limit on what is wrong must not let more through than without it
        most = weights.thresholds.get("max_distance", math.inf)
        points = tuple(point for point in points if point["max_distance"] <= most)
    chosen = choose(points, review.accept_rate, review.max_wrong_rate)
    if chosen is None:
        raise Fatal(
            f"the weights {weights.name} have no operating point for review.accept_rate "
            f"{_told(review.accept_rate)} and review.max_wrong_rate {_told(review.max_wrong_rate)}",
            _offer(weights.operating),
            Exit.CONFIG,
        )
    return chosen


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
