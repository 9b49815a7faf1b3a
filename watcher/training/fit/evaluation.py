"""Evaluate predictions: how many are right, the confusion matrix, and each error by its file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from watcher.training.data.labelled_images import Examples

BINS = 15
"""The number of bins of the expected calibration error, as in Guo et al. 2017."""
HIGH_CONFIDENCE = 0.99
"""The confidence from which on nobody would look for an error."""


@dataclass(frozen=True)
class Error:
    """A wrong prediction. ``predicted`` is None for a file that could not be decoded."""

    path: str
    true: str
    predicted: str | None
    confidence: float


@dataclass(frozen=True)
class Evaluation:
    """Predictions for labelled images compared with the labels, before any threshold.

    ``confusion`` is (classes, classes): rows are true, columns predicted. Files that could not be decoded count in
    ``total`` and as errors, but have no column. ``confidences`` and ``right`` are (n,) over the decoded images.
    ``loss`` is their mean cross-entropy, without class weights.
    """

    classes: tuple[str, ...]
    total: int
    errors: tuple[Error, ...]
    confusion: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]
    loss: float = math.nan
    filed: npt.NDArray[np.bool_] | None = None
    """A mask (n,) of the decoded images that the thresholds would file; None without thresholds."""

    @property
    def correct(self) -> int:
        """The number of images whose most probable class is the true one."""
        return self.total - len(self.errors)

    @property
    def sure_errors(self) -> int:
        """The number of errors with a confidence of at least ``HIGH_CONFIDENCE``."""
        return sum(error.confidence >= HIGH_CONFIDENCE for error in self.errors)

    @property
    def reliability(self) -> Reliability:
        """The reliability of the confidences."""
        return reliability(self.confidences, self.right)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``evaluate --json`` prints. Its keys are a contract, and stay."""
        return {
            "total": self.total,
            "correct": self.correct,
            "errors": [vars(error) for error in self.errors],
            "classes": list(self.classes),
            "confusion": self.confusion.tolist(),
            "calibration_error": self.reliability.error,
            "sure_errors": self.sure_errors,
        }


def evaluate(
    data: Examples, probabilities: npt.NDArray[np.float64], filed: npt.NDArray[np.bool_] | None = None
) -> Evaluation:
    """Compare probabilities (n, classes), in the order of ``data.classes``, with the labels of the data."""
    predicted = probabilities.argmax(axis=1)
    confidences = probabilities.max(axis=1)
    names = data.classes
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (data.labels, predicted), 1)
    wrong = [
        Error(data.paths[i], names[data.labels[i]], names[predicted[i]], float(confidences[i]))
        for i in np.flatnonzero(predicted != data.labels)
    ]
    broken = [Error(path, names[label], None, 0.0) for path, label, _ in data.broken]
    total = len(data.labels) + len(data.broken)
    true = probabilities[np.arange(len(data.labels)), data.labels]
    loss = float(-np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean()) if len(true) else math.nan
    return Evaluation(names, total, (*wrong, *broken), confusion, confidences, predicted == data.labels, loss, filed)


@dataclass(frozen=True)
class Reliability:
    """The images, summed confidence and right predictions of each bin of confidence."""

    bins: tuple[tuple[int, float, int], ...]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over images of |share right - mean confidence| of their bin.

        Source: Guo et al. 2017, "On Reliability of Modern Neural Networks", equation 3.
        """
        total = sum(count for count, _, _ in self.bins)
        return sum(abs(right - confidence) for _, confidence, right in self.bins) / max(total, 1)


def reliability(confidences: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Reliability:
    """Sort predictions into bins of equal width by their confidence. An edge belongs to the bin below it."""
    sure = np.nan_to_num(confidences)  # a training that diverged has none
    which = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    sums = np.bincount(which, minlength=BINS), np.bincount(which, sure, BINS), np.bincount(which, right, BINS)
    return Reliability(tuple((int(n), float(c), int(r)) for n, c, r in zip(*sums, strict=True)))


def fit_min_confidence(judged: Evaluation, give_up: float) -> float:
    """Return the highest threshold that sends at most a share ``give_up`` of the right predictions to review.

    It is fitted on validation images. Every image with a confidence at or above it is filed.
    """
    right = np.sort(judged.confidences[judged.right])
    if not len(right):
        return 1.0
    return float(np.floor(right[min(int(give_up * len(right)), len(right) - 1)] * 1e4) / 1e4)


def confusion_table(judged: Evaluation) -> str:
    """Return the confusion matrix as text, with class names; rows are true."""
    names: Sequence[str] = judged.classes
    width = max(10, *(len(name) + 1 for name in names))
    head = " " * width + "".join(f"{name:>{width}}" for name in names) + f"{'right':>10}"
    rows = [
        f"{name:{width}}" + "".join(f"{count:>{width}}" for count in row) + f"{_share(row[i], row.sum()):>10}"
        for i, (name, row) in enumerate(zip(names, judged.confusion, strict=True))
    ]
    return "\n".join([head, *rows])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "-"


def draw_confusion(judged: Evaluation, path: Path, title: str) -> None:
    """Draw the confusion matrix as a PNG: counts in the cells, colour by the share of the row."""
    from matplotlib.figure import Figure

    names = judged.classes
    shares = judged.confusion / np.maximum(judged.confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.5 + len(names), 1.2 + len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title}\n{judged.correct} of {judged.total} right", fontsize=10)
    for row, column in np.ndindex(*judged.confusion.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(judged.confusion[row, column]), ha="center", va="center", color=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
