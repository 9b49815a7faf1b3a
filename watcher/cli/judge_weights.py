"""Judge weights with their thresholds, as the daemon would decide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from watcher.config.settings import Review
from watcher.core.records import Outcome, Scored
from watcher.model import classifier, decision, thresholds
from watcher.model.checkpoint import Checkpoint
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import evaluation
from watcher.training.site import fine_tuning
from watcher.training.site.promotion_gate import Predictions
from watcher.training.site.rehearsal import Rehearsal

BATCH = 64

FITTED_THRESHOLDS = Review()
"""Settings that ask for nothing: the thresholds are those that were fitted with the weights."""


def predict_rehearsed(weights: Checkpoint, memory: Rehearsal, review: Review = FITTED_THRESHOLDS) -> Predictions:
    """Predict the rehearsal's validation images, of which the outputs of the first linear layer are at hand.

    ``review`` is what the operator asks for.
    """
    logits, features = fine_tuning.predict(classifier.build(weights), memory.valid)
    known = classifier.known_images(weights)
    scored = Scored(logits, None if known is None else known.distance(features))
    return _decided(weights, [scored], review)


def predict_images(weights: Checkpoint, data: Examples, review: Review = FITTED_THRESHOLDS) -> Predictions:
    """Predict images. ``review`` is what the operator asks for."""
    return _decided(weights, _scored(weights, data), review)


def _scored(weights: Checkpoint, data: Examples) -> list[Scored]:
    """Score images (n, 64, 64) by the daemon's stations, batch by batch, on the device there is."""
    station = classifier.Classifier(classifier.build(weights), classifier.choose_device("auto"))
    network = classifier.make_scorer(station, weights)
    return [network(data.images[start : start + BATCH]) for start in range(0, len(data.images), BATCH)]


def _decided(weights: Checkpoint, scored: Sequence[Scored], review: Review) -> Predictions:
    policy = thresholds.policy(review, weights)
    decisions = [each for batch in scored for each in decision.decide(batch, [False] * len(batch.logits), policy)]
    labels = [0 if each.label is None else weights.classes.index(each.label) for each in decisions]
    filed = [each.outcome is Outcome.SORTED for each in decisions]
    return Predictions(np.array(labels, np.int64), np.array(filed, np.bool_))


def evaluate(weights: Checkpoint, data: Examples) -> evaluation.Evaluation:
    """Classify every image as the daemon would, and compare with the labels.

    Raises:
        Fatal: The data has classes that the weights do not know (exit code 5).
    """
    data = relabelled(data, weights.classes)
    classifier.use_threads(0)
    scored, policy = _scored(weights, data), thresholds.policy(FITTED_THRESHOLDS, weights)
    count = len(weights.classes)
    parts = [decision.probabilities(batch.logits, policy.temperature)[:, :count] for batch in scored]
    filed = _decided(weights, scored, FITTED_THRESHOLDS).filed
    return evaluation.evaluate(data, np.concatenate([np.zeros((0, count)), *parts]), filed)


def relabelled(data: Examples, classes: Sequence[str]) -> Examples:
    """Return images with labels in the order of the weights' classes.

    Raises:
        Fatal: The data has classes that are none of these (exit code 5).
    """
    advice = f"They know {', '.join(classes)}: name the class directories so."
    return labelled_images.relabelled(data, classes, "the weights do not know the classes", advice)
