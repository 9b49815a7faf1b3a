"""From logits to a decision: a class, or review. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from watcher.records import Decision, Outcome

REVIEW_REASONS = ("low_confidence", "blank_image")


@dataclass(frozen=True)
class Policy:
    """When an image may be filed without a person.

    ``min_confidence`` is a probability in [0, 1], fitted on validation images
    and stored with the weights. ``temperature`` divides the logits before the
    softmax (Guo et al. 2017); 1 leaves them as they are.
    """

    classes: tuple[str, ...]
    min_confidence: float
    temperature: float = 1.0
    top: int = 3
    review_blank: bool = False
    """Send images of one single grey level to review, however sure the network is."""


def probabilities(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax over the last axis of (n, classes), in double precision."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # infinite logits become NaN, which decide() sends to review
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def decide(logits: npt.NDArray[np.float32], blank: Sequence[bool], policy: Policy) -> list[Decision]:
    """One decision for each row of ``logits`` (n, classes); ``blank`` marks images of one grey level.

    Logits that are no numbers (a damaged device, say) go to review: a
    confidence that can not be computed is none.
    """
    rows = probabilities(logits, policy.temperature)
    return [_one(row, empty, policy) for row, empty in zip(rows, blank, strict=True)]


def _one(row: npt.NDArray[np.float64], blank: bool, policy: Policy) -> Decision:
    if not math.isfinite(float(row.sum())):
        return Decision(Outcome.REVIEW, None, 0.0, "low_confidence", "the network gave no finite numbers")
    order = np.argsort(-row, kind="stable")[: policy.top]
    top = tuple((policy.classes[i], float(row[i])) for i in order)
    label, confidence = top[0]
    if blank and policy.review_blank:
        return Decision(Outcome.REVIEW, label, confidence, "blank_image", "every pixel has the same grey level", top)
    if not confidence >= policy.min_confidence:  # also when the threshold is no number
        detail = f"{confidence:.4f} is below {policy.min_confidence:.4f}"
        return Decision(Outcome.REVIEW, label, confidence, "low_confidence", detail, top)
    return Decision(Outcome.SORTED, label, confidence, None, None, top)
