"""Decide on a class or on review from the scores of the network. All functions are pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from watcher.core.records import (
    Decision,
    Outcome,
    Scored,
)

REVIEW_REASONS = ("low_confidence", "out_of_distribution", "blank_image")


@dataclass(frozen=True)
class Policy:
    """The conditions under which an image is filed without a person.

    ``min_confidence`` is a probability in [0, 1], and ``max_distance`` an out-of-distribution score. Both were fitted
    on validation images and are stored with the weights. ``temperature`` divides the logits before the softmax (Guo et
    al. 2017); 1 changes nothing.
    """

    classes: tuple[str, ...]
    min_confidence: float
    temperature: float = 1.0
    max_distance: float = math.inf
    top: int = 3
    review_blank: bool = False
    """True sends images of one single grey level to review, however sure the network is."""


def probabilities(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Return the softmax over the last axis of (n, classes), in double precision."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # infinite logits give NaN, which decide() sends to review
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def decide(scored: Scored, blank: Sequence[bool], policy: Policy) -> list[Decision]:
    """Return a decision for each of n images. ``blank`` marks those of one grey level.

    Images whose scores are not finite (because of a damaged device, for example) go to review.
    """
    rows = probabilities(scored.logits, policy.temperature)
    distances = np.zeros(len(rows)) if scored.distance is None else scored.distance
    return [
        _decide_one(row, float(distance), is_blank, policy)
        for row, distance, is_blank in zip(rows, distances, blank, strict=True)
    ]


def _decide_one(row: npt.NDArray[np.float64], distance: float, blank: bool, policy: Policy) -> Decision:
    if not math.isfinite(float(row.sum()) + distance):
        return Decision(Outcome.REVIEW, None, 0.0, "low_confidence", "the network gave no finite numbers")
    known, none = row[: len(policy.classes)], float(row[len(policy.classes) :].sum())
    order = np.argsort(-known, kind="stable")[: policy.top]
    top = tuple((policy.classes[i], float(known[i])) for i in order)
    label, confidence = top[0]
    if blank and policy.review_blank:
        return Decision(Outcome.REVIEW, label, confidence, "blank_image", "every pixel has the same grey level", top)
    if none > confidence:
        detail = f"none of the classes, with a probability of {none:.4f}"
        return Decision(Outcome.REVIEW, label, confidence, "out_of_distribution", detail, top)
    if not confidence >= policy.min_confidence:  # true also if the threshold is NaN
        detail = f"{confidence:.4f} is below {policy.min_confidence:.4f}"
        return Decision(Outcome.REVIEW, label, confidence, "low_confidence", detail, top)
    if not distance <= policy.max_distance:
        detail = f"unlike all images it was trained on: distance {distance:.4f} is above {policy.max_distance:.4f}"
        return Decision(Outcome.REVIEW, label, confidence, "out_of_distribution", detail, top)
    return Decision(Outcome.SORTED, label, confidence, None, None, top)


class Network(Protocol):
    """A function that scores images (n, 64, 64)."""

    def __call__(self, images: npt.NDArray[np.uint8], /) -> Scored:
        """Return the scores of a batch."""
