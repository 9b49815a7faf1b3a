"""The thresholds in force: the operator's wish, else what was fitted with the weights."""

from __future__ import annotations

import math

import pytest

from watcher.config.settings import Review
from watcher.core.errors import Exit, Fatal
from watcher.model import thresholds
from watcher.model.checkpoint import Checkpoint

POINTS = (
    {"accept_rate": 0.999, "wrong_rate": 0.01, "min_confidence": 0.5, "max_distance": 0.3},
    {"accept_rate": 0.995, "wrong_rate": 0.002, "min_confidence": 0.6, "max_distance": 0.2},
    {"accept_rate": 0.95, "wrong_rate": 0.0, "min_confidence": 0.9, "max_distance": 0.1},
)


def weights(**changes: object) -> Checkpoint:
    fitted = {"min_confidence": 0.7, "max_distance": 0.25, "temperature": 1.5}
    return Checkpoint("w", {}, ("Hand", "CXR"), {}, fitted, operating=POINTS, **changes)  # type: ignore[arg-type]


def test_default_is_what_was_fitted() -> None:
    """Without a wish, the thresholds stored with the weights count, and their temperature."""
    found = thresholds.policy(Review(), weights())
    assert (found.min_confidence, found.max_distance, found.temperature) == (0.7, 0.25, 1.5)


@pytest.mark.parametrize(
    ("accept", "wrong", "chosen"),
    [
        (0.95, None, 0.95),
        (0.96, None, 0.995),
        (0.999, None, 0.999),
        (None, 1.0, 0.999),
        (None, 0.005, 0.995),
        (None, 0.0, 0.95),
        (0.9, 0.005, 0.95),
        (0.99, 0.005, 0.995),
    ],
)
def test_wish_chooses_a_point(accept: float | None, wrong: float | None, chosen: float) -> None:
    """No less is filed than asked for, no more is wrong than allowed; beyond that, the careful point is taken."""
    point = thresholds.choose_point(POINTS, accept, wrong)
    assert point is not None
    assert point["accept_rate"] == chosen


def test_policy_takes_the_chosen_point() -> None:
    """The thresholds of the point are in force, not those that were fitted."""
    found = thresholds.policy(Review(accept_rate=0.96), weights())
    assert (found.min_confidence, found.max_distance) == (0.6, 0.2)


@pytest.mark.parametrize(("wrong", "distance"), [(1.0, 0.2), (0.005, 0.2), (0.0, 0.1)])
def test_limit_on_what_is_wrong_never_lets_more_through(wrong: float, distance: float) -> None:
    """However much may be wrong, no more is filed than without the limit: the fitted distance is 0.25."""
    assert thresholds.policy(Review(max_wrong_rate=wrong), weights()).max_distance == distance


@pytest.mark.parametrize(("accept", "wrong"), [(0.9999, None), (0.999, 0.001)])
def test_wish_that_no_point_fulfils_is_refused(accept: float | None, wrong: float | None) -> None:
    """A rate that the weights can not give is refused with the rates that they can, and not replaced by another."""
    with pytest.raises(Fatal) as caught:
        thresholds.policy(Review(accept_rate=accept, max_wrong_rate=wrong), weights())
    assert caught.value.code is Exit.CONFIG
    assert "0.995" in str(caught.value.advice)


def test_weights_without_points() -> None:
    """Older weights carry no points: a wish is refused, none is not."""
    old = Checkpoint("old", {}, ("Hand",), {}, {"min_confidence": 0.8})
    found = thresholds.policy(Review(), old)
    assert (found.min_confidence, found.max_distance) == (0.8, math.inf)
    with pytest.raises(Fatal, match="no operating point"):
        thresholds.policy(Review(accept_rate=0.9), old)


def test_confidence_of_the_operator_wins() -> None:
    """review.min_confidence replaces the confidence of any point, and nothing else of it."""
    found = thresholds.policy(Review(min_confidence=0.99, accept_rate=0.95), weights())
    assert (found.min_confidence, found.max_distance) == (0.99, 0.1)


@pytest.mark.parametrize(
    ("review", "rate"),
    [
        (Review(), 0.004),
        (Review(accept_rate=0.96), 0.005),
        (Review(max_wrong_rate=0.0), 0.05),
        (Review(min_confidence=0.99), None),
        (Review(accept_rate=0.95, min_confidence=0.99), None),
    ],
)
def test_review_rate_of_the_operating_point(review: Review, rate: float | None) -> None:
    """The share is that of the point in force: more by a stricter one, unknown by a threshold of one's own."""
    assert thresholds.review_rate(review, weights(), 0.004) == (rate if rate is None else pytest.approx(rate))
