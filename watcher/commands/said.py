"""What weights with their thresholds say of images: by this ``adapt`` goes only so far, and ``promote`` judges."""

from __future__ import annotations

import numpy as np

from watcher import checkpoint, classify, decide, operating
from watcher.ood import Known
from watcher.records import Outcome, Scored
from watcher.settings import Review
from watcher.training import adapt, gate, rehearsal
from watcher.training.dataset import Examples

BATCH = 64

FITTED = Review()
"""Asks for nothing: the thresholds are those that were fitted with the weights."""


def of_rehearsed(weights: checkpoint.Checkpoint, memory: rehearsal.Rehearsal, review: Review = FITTED) -> gate.Said:
    """Of the rehearsal's validation images, which are there as the first linear layer gave them.

    ``review`` is what the operator asks for: by default the thresholds that were fitted.
    """
    logits, features = adapt.answers(classify.build(weights), memory.valid)
    known: Known | None = classify.known(weights)
    return _decided(weights, [Scored(logits, None if known is None else known.distance(features))], review)


def of_images(weights: checkpoint.Checkpoint, data: Examples, review: Review = FITTED) -> gate.Said:
    """Of images (n, 64, 64), by the stations of the daemon. ``review`` as above."""
    station = classify.Classifier(classify.build(weights), classify.choose_device("auto"))
    network = classify.scoring(station, weights)
    batches = (data.images[start : start + BATCH] for start in range(0, len(data.images), BATCH))
    return _decided(weights, [network(batch) for batch in batches], review)


def _decided(weights: checkpoint.Checkpoint, scored: list[Scored], review: Review) -> gate.Said:
    policy = operating.policy(review, weights)
    decisions = [d for each in scored for d in decide.decide(each, [False] * len(each.logits), policy)]
    labels = [0 if d.label is None else weights.classes.index(d.label) for d in decisions]
    return gate.Said(np.array(labels, np.int64), np.array([d.outcome is Outcome.SORTED for d in decisions], np.bool_))
