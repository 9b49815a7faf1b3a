"""What weights with their thresholds say of images: by this ``adapt`` goes only so far, and ``promote`` judges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from watcher.config.settings import Review
from watcher.core.records import Outcome, Scored
from watcher.model import checkpoint, classifier, decision, thresholds
from watcher.model import decision as deciding
from watcher.model.out_of_distribution import KnownImages
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import evaluation
from watcher.training.site import fine_tuning, promotion_gate, rehearsal

BATCH = 64

FITTED = Review()
"""Asks for nothing: the thresholds are those that were fitted with the weights."""


def of_rehearsed(
    weights: checkpoint.Checkpoint, memory: rehearsal.Rehearsal, review: Review = FITTED
) -> promotion_gate.Predictions:
    """Of the rehearsal's validation images, which are there as the first linear layer gave them.

    ``review`` is what the operator asks for: by default the thresholds that were fitted.
    """
    logits, features = fine_tuning.answers(classifier.build(weights), memory.valid)
    known: KnownImages | None = classifier.known_images(weights)
    return _decided(weights, [Scored(logits, None if known is None else known.distance(features))], review)


def of_images(weights: checkpoint.Checkpoint, data: Examples, review: Review = FITTED) -> promotion_gate.Predictions:
    """Of images (n, 64, 64), by the stations of the daemon. ``review`` as above."""
    station = classifier.Classifier(classifier.build(weights), classifier.choose_device("auto"))
    network = classifier.make_scorer(station, weights)
    batches = (data.images[start : start + BATCH] for start in range(0, len(data.images), BATCH))
    return _decided(weights, [network(batch) for batch in batches], review)


def _decided(weights: checkpoint.Checkpoint, scored: list[Scored], review: Review) -> promotion_gate.Predictions:
    policy = thresholds.policy(review, weights)
    decisions = [d for each in scored for d in decision.decide(each, [False] * len(each.logits), policy)]
    labels = [0 if d.label is None else weights.classes.index(d.label) for d in decisions]
    return promotion_gate.Predictions(
        np.array(labels, np.int64), np.array([d.outcome is Outcome.SORTED for d in decisions], np.bool_)
    )


def judge(weights: checkpoint.Checkpoint, data: labelled_images.Examples) -> evaluation.Report:
    """Classify every image as the daemon would, on the device there is.

    Raises:
        Fatal: exit code 5; the data has classes that the weights do not know.
    """
    data = relabelled(data, weights.classes)
    classifier.use_threads(0)
    station = classifier.Classifier(classifier.build(weights), classifier.choose_device("auto"))
    network, policy = classifier.make_scorer(station, weights), thresholds.policy(Review(), weights)
    shares, filed = [np.zeros((0, len(weights.classes)))], [np.zeros(0, np.bool_)]
    for start in range(0, len(data.images), BATCH):
        scored = network(data.images[start : start + BATCH])
        shares.append(deciding.probabilities(scored.logits, policy.temperature)[:, : len(weights.classes)])
        decisions = deciding.decide(scored, [False] * len(scored.logits), policy)
        filed.append(np.array([decision.outcome is Outcome.SORTED for decision in decisions]))
    return evaluation.report(data, np.concatenate(shares), np.concatenate(filed))


def relabelled(data: labelled_images.Examples, classes: Sequence[str]) -> labelled_images.Examples:
    """The same images with labels in the weights' own class order.

    Raises:
        Fatal: exit code 5; the data has classes that are none of these.
    """
    advice = f"They know {', '.join(classes)}: name the class directories so."
    return labelled_images.relabelled(data, classes, "the weights do not know the classes", advice)
