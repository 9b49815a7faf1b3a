"""Compare scores of novelty on one network. The higher a score, the less like the training images an image is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from watcher.images import decode
from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import calibration

if TYPE_CHECKING:
    from watcher.training.multi_source.unseen_sources import NetworkProfile

Score = npt.NDArray[np.floating[Any]]

NAMES = {
    "softmax": "largest softmax over the six classes (Hendrycks and Gimpel 2017)",
    "energy": "energy of the six logits (Liu et al. 2020)",
    "none": "largest softmax of a class, with an answer for none of them",
    "mahalanobis": "Mahalanobis distance of the features (Lee et al. 2018)",
    "neighbour": "cosine distance of the features from the nearest known image (Sun et al. 2022)",
    "none, both ways round": "the same as the mean over the image and its mirror image",
    "pixels": "part of the pixels that 64 principal components of known images do not explain (density of the input)",
    "none and neighbour": "the sum of both, each in units of its spread on validation",
}


SMALLEST_GROUP = 5
"""The fewest images of a class of a set that has a Gaussian of its own."""

RIDGE = 1e-3
"""The number that is added to the variances, so that the covariance has an inverse."""

COMPONENTS = 64
"""The number of principal components of the pixels."""


@dataclass(frozen=True)
class Gaussians:
    """Gaussians of one covariance: ``means`` (k, d), and ``precision`` (d, d), the inverse of the covariance."""

    means: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]

    def distance(self, features: calibration.Features) -> Score:
        """Return the squared Mahalanobis distance of each row (n, d) from the nearest mean."""
        apart = features[:, None] - self.means[None]
        return np.asarray(np.einsum("nkd,de,nke->nk", apart, self.precision, apart, optimize=True).min(axis=1))


def fit_gaussians(
    features: Sequence[calibration.Features],
    labels: Sequence[npt.NDArray[np.int64]],
) -> Gaussians:
    """Fit a Gaussian to each class of each set, all of one covariance. Classes of few images are left out."""
    groups = [rows[own == label] for rows, own in zip(features, labels, strict=True) for label in np.unique(own)]
    groups = [group for group in groups if len(group) >= SMALLEST_GROUP]
    means = np.stack([group.mean(axis=0, dtype=np.float64) for group in groups])
    apart = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
    covariance = apart.T @ apart / len(apart) + RIDGE * np.eye(apart.shape[1])
    return Gaussians(means, np.linalg.inv(covariance))


@dataclass(frozen=True)
class PixelComponents:
    """Mean (p,) and principal components (k, p) of known images, standardised."""

    mean: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]

    def residual(self, images: npt.NDArray[np.uint8]) -> Score:
        """Return the squared length of the part of images (n, 64, 64) that the components do not explain, (n,)."""
        apart = _flat(images) - self.mean
        rest = apart - (apart @ self.basis.T) @ self.basis
        return np.asarray((rest * rest).sum(axis=1))


def fit_pixel_components(images: npt.NDArray[np.uint8]) -> PixelComponents:
    """Fit principal components to images (n, 64, 64)."""
    rows = _flat(images)
    mean = rows.mean(axis=0)
    _, _, basis = np.linalg.svd(rows - mean, full_matrices=False)
    return PixelComponents(mean, basis[:COMPONENTS])


def _flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return decode.standardise(images).reshape(len(images), -1)


@dataclass(frozen=True)
class ScoreInputs:
    """Everything that scores of n images are computed from.

    These are the network's logits and features, its logits for the mirror images, and the residual of the pixels.
    """

    logits: calibration.Logits
    features: calibration.Features
    mirrored: calibration.Logits
    residual: Score


def scores(inputs: ScoreInputs, profile: NetworkProfile, classes: int) -> dict[str, Score]:
    """Return each single score (n,) by its name."""
    logits, features = inputs.logits, inputs.features
    both = (calibration.probabilities(logits) + calibration.probabilities(inputs.mirrored)) / 2
    six = logits[:, :classes].astype(np.float64)
    top = six.max(axis=1)
    sure = calibration.probabilities(logits)[:, :classes].max(axis=1)
    return {
        "softmax": 1 - calibration.probabilities(logits[:, :classes]).max(axis=1),
        "energy": -(top + np.log(np.exp(six - top[:, None]).sum(axis=1))),
        "none": _log_odds_against(sure),
        "none, both ways round": _log_odds_against(both[:, :classes].max(axis=1)),
        "pixels": inputs.residual,
        "mahalanobis": profile.gaussians.distance(features),
        "neighbour": np.log(np.maximum(profile.known.distance(features), 1e-6)),
    }


def _log_odds_against(sure: Score) -> Score:
    """Return the logarithm of the odds against a probability."""
    return np.asarray(np.log1p(-np.minimum(sure, 1 - 1e-12)) - np.log(np.maximum(sure, 1e-12)))


def compare(
    profile: NetworkProfile,
    answers: Sequence[ScoreInputs],
    pool: Pool,
    shown: Sequence[npt.NDArray[np.int64]],
    accept_rate: float,
) -> dict[str, dict[str, Any]]:
    """Compare the scores, each at the threshold that accepts this share of the base data's validation images.

    ``answers`` are those for each view of the pool's images, ``shown`` the indices of the images that have the view.
    """
    classes = len(pool.classes)
    valid = scores(profile.inputs, profile, classes)
    by_view = [scores(inputs, profile, classes) for inputs in answers]
    middle = {name: (np.median(valid[name]), np.std(valid[name])) for name in ("none", "neighbour")}
    for named in (valid, *by_view):
        named["none and neighbour"] = np.sum([(named[name] - m) / s for name, (m, s) in middle.items()], axis=0)
    outliers = pool.labels == OUTLIER
    kinds = np.array(pool.kinds)[outliers]
    results = {}
    for name in NAMES:
        limit = float(np.quantile(valid[name], accept_rate))
        right = wrong = images = 0
        for view, which in enumerate(shown):
            inside = which[pool.labels[which] != OUTLIER]
            predicted = answers[view].logits[inside, :classes].argmax(axis=1)
            filed = by_view[view][name][inside] <= limit
            images += len(inside)
            right += int((filed & (predicted == pool.labels[inside])).sum())
            wrong += int((filed & (predicted != pool.labels[inside])).sum())
        outlier_scores = by_view[0][name][outliers]
        results[name] = {
            "auroc": auroc(valid[name], outlier_scores),
            "images": images,
            "filed_right": right,
            "filed_wrong": wrong,
            "strangers": len(outlier_scores),
            "reviewed": int((outlier_scores > limit).sum()),
            "reviewed_by_kind": {str(k): int((outlier_scores[kinds == k] > limit).sum()) for k in np.unique(kinds)},
        }
    return results


def auroc(known: Score, outlier_scores: Score) -> float:
    """Return the probability that an outlier scores above a known image. Ties count half."""
    _, place, counts = np.unique(np.concatenate([known, outlier_scores]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = ranks[len(known) :].sum() - len(outlier_scores) * (len(outlier_scores) + 1) / 2
    return float(above / (len(known) * len(outlier_scores)))
