"""Choose the thresholds: stricter ones file fewer images and fewer wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from watcher.config.settings import Review
from watcher.core.errors import Exit, Fatal
from watcher.model.checkpoint import Checkpoint
from watcher.model.decision import Policy

Point = Mapping[str, float]
"""An operating point: thresholds, the ``accept_rate`` they were fitted for, and their measured ``wrong_rate``."""


def policy(review: Review, weights: Checkpoint) -> Policy:
    """Return the thresholds that the operator asks for, or else those fitted with the weights.

    If the operator only limits the wrong rate, the result is never less strict than the fitted thresholds.

    Raises:
        Fatal: The weights have no such operating point (exit code 3).
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
    """Return the share of images like those of validation that goes to review.

    Args:
        review: The settings.
        weights: The weights.
        fitted: The share at the fitted thresholds, if it is known.

    Returns:
        None if it is unknown, as it is if the operator set another confidence threshold.

    Raises:
        Fatal: See :func:`policy`.
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
    if review.accept_rate is None:  # a limit on wrong images must not file more than no limit
        limit = weights.thresholds.get("max_distance", math.inf)
        points = tuple(point for point in points if point["max_distance"] <= limit)
    chosen = choose_point(points, review.accept_rate, review.max_wrong_rate)
    if chosen is None:
        raise Fatal(
            f"the weights {weights.name} have no operating point for review.accept_rate "
            f"{_shown(review.accept_rate)} and review.max_wrong_rate {_shown(review.max_wrong_rate)}",
            _advice(weights.operating),
            Exit.CONFIG,
        )
    return chosen


def choose_point(points: Sequence[Point], accept_rate: float | None, max_wrong_rate: float | None) -> Point | None:
    """Return the operating point that an operator asks for, or None if there is none.

    Of several points that fit, it is the one that sends most images to review. With ``max_wrong_rate`` alone it is the
    one that sends fewest.

    Args:
        points: The points to choose from.
        accept_rate: The least share to file of images like those of the training data.
        max_wrong_rate: The largest share of wrong images among the filed ones, of sources that were not trained on.
    """
    fits = [
        point
        for point in points
        if (accept_rate is None or point["accept_rate"] >= accept_rate)
        and (max_wrong_rate is None or point["wrong_rate"] <= max_wrong_rate)
    ]
    best = max if accept_rate is None else min
    return best(fits, key=lambda point: point["accept_rate"], default=None)


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _advice(points: Sequence[Point]) -> str:
    if not points:
        return "These weights have none: leave both null, and set review.min_confidence if you need to."
    rates = ", ".join(f"{point['accept_rate']:g} (wrong {point['wrong_rate']:.4f})" for point in points)
    return f"Choose one of their accept rates: {rates}."
