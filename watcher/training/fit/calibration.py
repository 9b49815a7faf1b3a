"""Calibrate a trained network on its predictions for validation images.

A temperature makes its confidence mean something, and thresholds decide which images are filed without a person.
Nothing of it is set by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from watcher.images import decode
from watcher.model import mednet

Logits = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]

BATCH = 256


@torch.inference_mode()
def predict(net: mednet.MedNet, images: npt.NDArray[np.uint8]) -> tuple[Logits, Features]:
    """Return logits (n, k) and penultimate features (n, d) of images (n, 64, 64), in evaluation mode."""
    net.eval()
    logits, features = (
        [np.zeros((0, net.config.classes), np.float32)],
        [np.zeros((0, net.config.hidden[1]), np.float32)],
    )
    for start in range(0, len(images), BATCH):
        scores = net(torch.from_numpy(decode.standardise(images[start : start + BATCH])))
        logits.append(scores.logits.numpy())
        features.append(scores.features.numpy())
    return np.concatenate(logits), np.concatenate(features)


def probabilities(logits: Logits, temperature: float = 1.0) -> Probabilities:
    """Return the softmax over all logits in double precision, as the daemon computes it."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def temperature(logits: Logits, labels: npt.NDArray[np.int64], smoothing: float = 0.0) -> float:
    """Return the temperature at which the labels are most likely: the number to divide the logits by.

    If every prediction is right, the likelihood is greatest at a temperature of 0, and every confidence would be 1.
    Therefore ``smoothing`` gives a share of each label to the other classes; :func:`platt_smoothing` has one.

    The search is by golden sections of the logarithm, between 0.1 and 10. Source: Guo et al. 2017, "On Calibration of
    Modern Neural Networks", section 4.2.
    """
    others = logits.shape[1] - 1

    def loss(log_t: float) -> float:
        rows = np.log(np.maximum(probabilities(logits, float(np.exp(log_t))), 1e-300))
        own = rows[np.arange(len(labels)), labels]
        return float(-((1 - smoothing) * own + smoothing * (rows.sum(axis=1) - own) / others).mean())

    low, high = np.log(0.1), np.log(10.0)
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def platt_smoothing(labels: npt.NDArray[np.int64]) -> float:
    """Return the share of n labels to give to other classes, however many predictions are right: 1 / (n + 2).

    Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2, where the target of n examples
    is (n + 1) / (n + 2).
    """
    return 1 / (len(labels) + 2)


@dataclass(frozen=True)
class Thresholds:
    """The least confidence and the largest distance of an image that is filed."""

    min_confidence: float
    max_distance: float

    def accept(
        self, probabilities: Probabilities, distance: npt.NDArray[np.floating[Any]], classes: int
    ) -> npt.NDArray[np.bool_]:
        """Return a mask (n,) of the images that are filed, by the rules of ``decide``.

        ``probabilities`` are (n, answers): those after the first ``classes`` are for none of the classes.
        """
        confidence = probabilities[:, :classes].max(axis=1)
        likely = probabilities[:, classes:].sum(axis=1) <= confidence
        return np.asarray(likely & (confidence >= self.min_confidence) & (distance <= self.max_distance))


LEAST_CONFIDENCE = 0.5
"""The lowest threshold: no image is filed under a class that it is probably not of."""

CONFIDENCE_PART = 0.125
"""The share of the reviewed images that may be reviewed for low confidence. The rest is for distance."""


def thresholds(
    confidence: npt.NDArray[np.float64], distance: npt.NDArray[np.floating[Any]], accept_rate: float
) -> Thresholds:
    """Return the thresholds at which at least ``accept_rate`` of some images are accepted.

    Fewer are accepted only if more of them have a confidence below :data:`LEAST_CONFIDENCE`. The threshold of the
    distance lies midway between the last accepted image and the next, so that another precision or order of computing
    accepts the same images. ``confidence`` and ``distance`` are (n,).
    """
    spare = int((1 - accept_rate) * len(confidence) + 1e-9)  # images
    lowest = max(float(np.sort(confidence)[int(spare * CONFIDENCE_PART)]), LEAST_CONFIDENCE)
    sure = confidence >= lowest
    far = np.sort(distance[sure])[::-1]
    last = min(max(spare - int((~sure).sum()), 0), len(far) - 1)
    highest = float(far[max(last - 1, 0) : last + 1].mean(dtype=np.float64)) if len(far) else 0.0
    return Thresholds(float(np.floor(lowest * 1e6) / 1e6), float(np.ceil(highest * 1e6) / 1e6))


def sample_per_group(labels: npt.NDArray[np.int64], origins: Sequence[str], per_group: int) -> npt.NDArray[np.int64]:
    """Draw indices of at most ``per_group`` images of each class from each origin, without outliers."""
    rng = np.random.default_rng(0)
    groups = np.array([f"{label} {origin}" for label, origin in zip(labels, origins, strict=True)])
    chosen = [rng.permutation(np.flatnonzero(groups == name))[:per_group] for name in np.unique(groups[labels >= 0])]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
