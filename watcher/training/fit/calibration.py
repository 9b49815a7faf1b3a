"""From a trained network to a checkpoint that knows what it does not know.

Batch normalisation is folded away, numbers are halved, confidence is made to
mean something, what is near is described, and the thresholds are set: all on
what the network answers for validation images, none of it by hand.
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
    """Logits (n, k) and penultimate features (n, d) of images (n, 64, 64), in evaluation mode."""
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
    """Softmax over all answers, in double precision; as the daemon computes it."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def temperature(logits: Logits, labels: npt.NDArray[np.int64], smoothing: float = 0.0) -> float:
    """What to divide logits by so that the likelihood of the labels is greatest.

    Where no label is missed, it is greatest with no temperature left, and every
    confidence would be 1. ``smoothing`` is the share of per_group label that is given to
    the other classes; :func:`platt_smoothing` has one for so many labels.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section
    4.2. Searched by golden sections of the logarithm, between 0.1 and 10.
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
    """The share of labels to be in smoothing of, however many were told right: 1 / (n + 2).

    Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines",
    section 2.2, where the target of n examples is (n + 1) / (n + 2).
    """
    return 1 / (len(labels) + 2)


@dataclass(frozen=True)
class Thresholds:
    """An image is filed whose confidence is at least the one and whose distance at most the other."""

    min_confidence: float
    max_distance: float

    def accept(
        self, shares: Probabilities, distance: npt.NDArray[np.floating[Any]], classes: int
    ) -> npt.NDArray[np.bool_]:
        """Mask (n,) of what is filed, as ``decide`` does; ``shares`` (n, answers) are probabilities."""
        sure = shares[:, :classes].max(axis=1)
        likely = shares[:, classes:].sum(axis=1) <= sure
        return np.asarray(likely & (sure >= self.min_confidence) & (distance <= self.max_distance))


LEAST_CONFIDENCE = 0.5
"""No image is filed under a class that it more probably is not of."""

CONFIDENCE_PART = 0.125
"""The part of what may be sent to review that goes for low confidence; the rest goes for distance."""


def thresholds(
    confidence: npt.NDArray[np.float64], distance: npt.NDArray[np.floating[Any]], accept_rate: float
) -> Thresholds:
    """Those at which at least ``accept_rate`` of some images, (n,) each, are accepted.

    Fewer only where more of them have a confidence below :data:`LEAST_CONFIDENCE`. The distance lies midway between the
    last image accepted and the first that is not: what computes in another precision is to accept the same ones.
    """
    spare = int((1 - accept_rate) * len(confidence) + 1e-9)  # images
    lowest = max(float(np.sort(confidence)[int(spare * CONFIDENCE_PART)]), LEAST_CONFIDENCE)
    sure = confidence >= lowest
    far = np.sort(distance[sure])[::-1]
    last = min(max(spare - int((~sure).sum()), 0), len(far) - 1)
    highest = float(far[max(last - 1, 0) : last + 1].mean(dtype=np.float64)) if len(far) else 0.0
    return Thresholds(float(np.floor(lowest * 1e6) / 1e6), float(np.ceil(highest * 1e6) / 1e6))


def sample_per_group(labels: npt.NDArray[np.int64], origins: Sequence[str], per_group: int) -> npt.NDArray[np.int64]:
    """Which images a checkpoint remembers: at most ``per_group`` of every class from every origin, strangers none."""
    rng = np.random.default_rng(0)
    groups = np.array([f"{label} {origin}" for label, origin in zip(labels, origins, strict=True)])
    chosen = [rng.permutation(np.flatnonzero(groups == name))[:per_group] for name in np.unique(groups[labels >= 0])]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)
