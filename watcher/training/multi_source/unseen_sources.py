"""Judge a network on sources of the classes and on kinds of outliers that it was not trained on.

The daemon's decoder reads the images. Those in Hounsfield units are judged in several views, as a hospital might have
exported them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watcher.images import decode, resize
from watcher.model import mednet, out_of_distribution
from watcher.training.data.labelled_images import Examples
from watcher.training.data.multi_source_pool import HU_OFFSET, OUTLIER, Pool
from watcher.training.fit import calibration, evaluation
from watcher.training.multi_source import novelty_scores
from watcher.training.site import rehearsal

WINDOWS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "ChestCT": ((-600, 1500), (40, 400)),
    "AbdomenCT": ((40, 400), (50, 350)),
    "HeadCT": ((40, 80), (500, 2000)),
}
"""Level and width in HU of the windows in which radiologists read such series."""

OTHER_WINDOWS = ((40.0, 400.0), (500.0, 2000.0))

VIEWS = ("all levels", "window", "other window", "MedNIST's")
"""Views of Hounsfield units: from the least to the greatest, in a window, in another window, and black below water, as
MedNIST shows its CTs. Other images have the first view only."""

FILE_VIEWS = 3
"""The number of views that files come in. The last view is none of them: it was a choice that decoding had."""

ACCEPT_RATES = (0.9995, 0.999, 0.998, 0.997, 0.996, 0.995, 0.99, 0.98, 0.95)
"""The accepted shares of the base data's validation images at the operating points that are measured."""

Pictures = npt.NDArray[np.uint8]


def rendered(pool: Pool, root: Path) -> Pictures:
    """Return every image of the pool in each of :data:`VIEWS`, (n, 4, 64, 64)."""
    views = np.zeros((len(pool), len(VIEWS), decode.SIDE, decode.SIDE), np.uint8)
    for number, path in enumerate(pool.paths):
        views[number] = decode.grey64((root / path).read_bytes())
        if pool.renderings[number] == "hu":
            name = "" if pool.labels[number] == OUTLIER else pool.classes[pool.labels[number]]
            hu = pool.levels[number].astype(np.float32) - HU_OFFSET
            for view, (level, width) in enumerate(WINDOWS.get(name, OTHER_WINDOWS), 1):
                views[number, view] = _as_image((hu - level) / width + 0.5)
            views[number, 3] = _as_image(hu / max(float(hu.max()), 1.0))
    return views


def _as_image(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return resize.to_64(np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True)
class NetworkProfile:
    """A network's predictions for the base data's validation images, and what it knows of its training images."""

    logits: calibration.Logits
    features: calibration.Features
    labels: npt.NDArray[np.int64]
    temperature: float
    known: out_of_distribution.KnownImages
    gaussians: novelty_scores.Gaussians
    pixels: novelty_scores.PixelComponents
    inputs: novelty_scores.ScoreInputs

    def shares(self, classes: int) -> calibration.Probabilities:
        """Return calibrated probabilities of the classes, (n, classes)."""
        return calibration.probabilities(self.logits, self.temperature)[:, :classes]

    def limits(self, accept_rate: float, classes: int) -> calibration.Thresholds:
        """Return the thresholds that accept this share of the validation images."""
        confidence = self.shares(classes).max(axis=1)
        return calibration.thresholds(confidence, self.known.distance(self.features), accept_rate)


REMEMBERED_BASE, REMEMBERED_POOL = 250, 60
"""Known images of each class of the base data, and of each class and origin of the pool."""


def measure_profile(
    net: mednet.MedNet, train: Examples, valid: Examples, pool: Pool, pictures: Pictures
) -> NetworkProfile:
    """Measure the profile of a network.

    ``pool`` and ``pictures`` (n, 4, 64, 64) are what it was trained on besides the base data.
    """
    logits, features = calibration.predict(net, valid.images)
    some = calibration.sample_per_group(train.labels, ["base"] * len(train.labels), 4 * REMEMBERED_BASE)
    _, base = calibration.predict(net, train.images[some])
    labels, shown, origins = _views_of_classes(pool, pictures)
    _, foreign = calibration.predict(net, shown)
    kept = calibration.sample_per_group(labels, origins, REMEMBERED_POOL)
    few = calibration.sample_per_group(train.labels[some], ["base"] * len(some), REMEMBERED_BASE)
    pixels = novelty_scores.fit_pixel_components(np.concatenate([train.images[some[few]], shown[kept]]))
    return NetworkProfile(
        logits,
        features,
        valid.labels,
        calibration.temperature(logits, valid.labels),
        out_of_distribution.fit(np.concatenate([base[few], foreign[kept]])),
        novelty_scores.fit_gaussians([base, foreign], [train.labels[some], labels]),
        pixels,
        _score_inputs(net, valid.images, pixels),
    )


def _score_inputs(
    net: mednet.MedNet, images: Pictures, pixels: novelty_scores.PixelComponents
) -> novelty_scores.ScoreInputs:
    mirrored, _ = calibration.predict(net, np.ascontiguousarray(images[:, :, ::-1]))
    return novelty_scores.ScoreInputs(*calibration.predict(net, images), mirrored, pixels.residual(images))


def _views_of_classes(pool: Pool, pictures: Pictures) -> tuple[npt.NDArray[np.int64], Pictures, list[str]]:
    """Return labels, images and origins of the pool's images of classes, each in all its views."""
    inside = np.flatnonzero(pool.labels != OUTLIER)
    pairs = [(n, v) for v in range(len(VIEWS)) for n in inside if v == 0 or pool.renderings[n] == "hu"]
    which, view = np.array([n for n, _ in pairs], np.int64), np.array([v for _, v in pairs], np.int64)
    return pool.labels[which], pictures[which, view], [pool.origins[n] for n in which]


REHEARSED_BASE, REHEARSED_OUTLIERS, JUDGED_OUTLIERS = 700, 40, 20
"""Rehearsed images of each class of the base data and of each kind of outlier, and images of each kind that judge."""


def make_rehearsal(
    net: mednet.MedNet, train: Examples, valid: Examples, pool: Pool, pictures: Pictures
) -> rehearsal.Rehearsal:
    """Return what a site needs to adapt the network: some of its training images, and all validation images.

    A third of each kind of outlier, at most :data:`JUDGED_OUTLIERS`, judges. The network was trained on these, but is
    not tuned on them again.
    """
    rng, none = np.random.default_rng(0), len(pool.classes)
    base = calibration.sample_per_group(train.labels, ["base"] * len(train.labels), REHEARSED_BASE)
    labels, shown, origins = _views_of_classes(pool, pictures)
    kept = calibration.sample_per_group(labels, origins, REMEMBERED_POOL)
    kinds = np.where(pool.labels == OUTLIER, pool.kinds, "")
    tuned, judged = [], []
    for kind in sorted(set(kinds.tolist()) - {""}):
        own = rng.permutation(np.flatnonzero(kinds == kind))
        judged.append(own[: len(own) // 3][:JUDGED_OUTLIERS])
        tuned.append(own[len(own) // 3 :][:REHEARSED_OUTLIERS])
    outliers = [np.concatenate(each) if each else np.zeros(0, np.int64) for each in (tuned, judged)]
    names = [np.full(len(each), none, np.int64) for each in outliers]
    return rehearsal.Rehearsal(
        rehearsal.trunk(net),
        rehearsal.layer_outputs(net, np.concatenate([train.images[base], shown[kept], pictures[outliers[0], 0]])),
        np.concatenate([train.labels[base], labels[kept], names[0]]),
        rehearsal.layer_outputs(net, np.concatenate([valid.images, pictures[outliers[1], 0]])),
        np.concatenate([valid.labels, names[1]]),
    )


def judge(
    net: mednet.MedNet, profile: NetworkProfile, pool: Pool, pictures: Pictures, accept_rate: float
) -> dict[str, Any]:
    """Return the figures of a network on what it was not trained on, as plain values, mostly counts."""
    classes = pool.classes
    inputs = [_score_inputs(net, pictures[:, view], profile.pixels) for view in range(len(VIEWS))]
    answers = [(each.logits, each.features) for each in inputs]
    limits = profile.limits(accept_rate, len(classes))
    probabilities = [calibration.probabilities(logits, profile.temperature) for logits, _ in answers]
    distances = [profile.known.distance(features) for _, features in answers]
    filed = [
        limits.accept(shares, distance, len(classes)) for shares, distance in zip(probabilities, distances, strict=True)
    ]
    predicted = [view[:, : len(classes)].argmax(axis=1) for view in probabilities]
    return {
        "limits": asdict(limits),
        "valid": {**_validation(profile, limits, len(classes)), "errors_by_class": _by_class(profile, classes)},
        "sources": _sources(pool, probabilities, predicted, filed),
        "kinds": _kinds(pool, filed[0]),
        "scores": novelty_scores.compare(profile, inputs, pool, _views_of(pool)[:FILE_VIEWS], accept_rate),
        "operating": [_operating(profile, rate, probabilities, distances, pool) for rate in ACCEPT_RATES],
        "confusion": _confusion(pool, predicted[0], filed[0]),
    }


def _views_of(pool: Pool) -> list[npt.NDArray[np.int64]]:
    """Return for each view the indices of the images that have it."""
    deep = np.array([each == "hu" for each in pool.renderings])
    return [np.flatnonzero(deep | (view == 0)) for view in range(len(VIEWS))]


def _validation(profile: NetworkProfile, limits: calibration.Thresholds, classes: int) -> dict[str, Any]:
    probabilities = calibration.probabilities(profile.logits, profile.temperature)
    predicted, confidence = probabilities[:, :classes].argmax(axis=1), probabilities[:, :classes].max(axis=1)
    filed = limits.accept(probabilities, profile.known.distance(profile.features), classes)
    return {
        "images": len(profile.labels),
        "errors": int((predicted != profile.labels).sum()),
        "filed": int(filed.sum()),
        "filed_wrong": int((filed & (predicted != profile.labels)).sum()),
        "sure_errors": int(((confidence >= evaluation.HIGH_CONFIDENCE) & (predicted != profile.labels)).sum()),
        "temperature": profile.temperature,
        "ece": evaluation.reliability(confidence, predicted == profile.labels).error,
    }


def _by_class(profile: NetworkProfile, classes: tuple[str, ...]) -> dict[str, int]:
    wrong = profile.labels[profile.logits[:, : len(classes)].argmax(axis=1) != profile.labels]
    return {name: int((wrong == label).sum()) for label, name in enumerate(classes)}


def _sources(
    pool: Pool,
    probabilities: list[calibration.Probabilities],
    predicted: list[npt.NDArray[np.int64]],
    filed: list[npt.NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    rows = []
    for view, which in enumerate(_views_of(pool)):
        pairs = sorted({(int(pool.labels[n]), pool.origins[n]) for n in which if pool.labels[n] != OUTLIER})
        for label, origin in pairs:
            own = [n for n in which if pool.labels[n] == label and pool.origins[n] == origin]
            right = predicted[view][own] == label
            row = {"class": pool.classes[label], "origin": origin, "view": VIEWS[view], "images": len(own)}
            row |= {"right": int(right.sum()), "filed_right": int((right & filed[view][own]).sum())}
            row["filed_wrong"] = int((~right & filed[view][own]).sum())
            if view == 0 and pool.renderings[own[0]] == "hu":
                mean = np.mean([shares[own, : len(pool.classes)] for shares in probabilities], axis=0)
                row["right_by_mean_of_views"] = int((mean.argmax(axis=1) == label).sum())
            rows.append(row)
    return rows


def _kinds(pool: Pool, filed: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    outliers = pool.labels == OUTLIER
    kinds = np.array(pool.kinds)
    return [
        {
            "kind": str(kind),
            "images": int((outliers & (kinds == kind)).sum()),
            "reviewed": int((outliers & (kinds == kind) & ~filed).sum()),
        }
        for kind in np.unique(kinds[outliers])
    ]


def _operating(
    profile: NetworkProfile,
    rate: float,
    probabilities: list[calibration.Probabilities],
    distances: list[npt.NDArray[np.float32]],
    pool: Pool,
) -> dict[str, Any]:
    """Count what becomes of unseen sources, in the views that files come in, and of unseen kinds at this point."""
    classes = len(pool.classes)
    limits = profile.limits(rate, classes)
    counts = {"images": 0, "filed_right": 0, "filed_wrong": 0}
    for view, which in enumerate(_views_of(pool)[:FILE_VIEWS]):
        inside = which[pool.labels[which] != OUTLIER]
        right = probabilities[view][inside, :classes].argmax(axis=1) == pool.labels[inside]
        filed = limits.accept(probabilities[view][inside], distances[view][inside], classes)
        counts["images"] += len(inside)
        counts["filed_right"] += int((filed & right).sum())
        counts["filed_wrong"] += int((filed & ~right).sum())
    is_outlier = pool.labels == OUTLIER
    reviewed = ~limits.accept(probabilities[0][is_outlier], distances[0][is_outlier], classes)
    valid = _validation(profile, limits, classes)
    outliers = {"strangers": int(is_outlier.sum()), "reviewed": int(reviewed.sum())}
    return {
        "accept_rate": rate,
        **counts,
        **outliers,
        "valid_filed": valid["filed"],
        "valid_wrong": valid["filed_wrong"],
    }


def _confusion(pool: Pool, predicted: npt.NDArray[np.int64], filed: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Count images by class and none of them (rows), and by the class they are filed as and review (columns)."""
    classes = len(pool.classes)
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    rows = np.where(pool.labels == OUTLIER, classes, pool.labels)
    np.add.at(matrix, (rows, np.where(filed, predicted, classes)), 1)
    return [[int(count) for count in row] for row in matrix]
