"""What weights with their thresholds say of images: by this ``adapt`` goes only so far, and ``promote`` judges."""

from __future__ import annotations

import numpy as np

from watcher.config.settings import Review
from watcher.core.records import Outcome, Scored
from watcher.model import checkpoint, classifier, decision, thresholds
from watcher.model.out_of_distribution import Known
from watcher.training.data.labelled_images import Examples
from watcher.training.site import fine_tuning, promotion_gate, rehearsal

BATCH = 64

FITTED = Review()
"""Asks for nothing: the thresholds are those that were fitted with the weights."""


def of_rehearsed(
    weights: checkpoint.Checkpoint, memory: rehearsal.Rehearsal, review: Review = FITTED
) -> promotion_gate.Said:
    """Of the rehearsal's validation images, which are there as the first linear layer gave them.

    ``review`` is what the operator asks for: by default the thresholds that were fitted.
    """
    logits, features = fine_tuning.answers(classifier.build(weights), memory.valid)
    known: Known | None = classifier.known(weights)
    return _decided(weights, [Scored(logits, None if known is None else known.distance(features))], review)


def of_images(weights: checkpoint.Checkpoint, data: Examples, review: Review = FITTED) -> promotion_gate.Said:
    """Of images (n, 64, 64), by the stations of the daemon. ``review`` as above."""
    station = classifier.Classifier(classifier.build(weights), classifier.choose_device("auto"))
    network = classifier.scoring(station, weights)
    batches = (data.images[start : start + BATCH] for start in range(0, len(data.images), BATCH))
    return _decided(weights, [network(batch) for batch in batches], review)


def _decided(weights: checkpoint.Checkpoint, scored: list[Scored], review: Review) -> promotion_gate.Said:
    policy = thresholds.policy(review, weights)
    decisions = [d for each in scored for d in decision.decide(each, [False] * len(each.logits), policy)]
    labels = [0 if d.label is None else weights.classes.index(d.label) for d in decisions]
    return promotion_gate.Said(
        np.array(labels, np.int64), np.array([d.outcome is Outcome.SORTED for d in decisions], np.bool_)
    )
