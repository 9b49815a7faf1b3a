"""Compare new weights with the present ones, and refuse them if a class is worse beyond noise.

Both judge the same images of several reference sets. A class is worse if the images that only the present weights file
right outnumber those that only the new ones do by more than chance (sign test).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIGNIFICANCE_LEVEL = 0.01
"""A difference is significant if chance makes one so large less often than this."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of some weights for n images: the class (n,), and True if the image is filed (n,)."""

    label: npt.NDArray[np.int64]
    filed: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassComparison:
    """One class of a reference set, by the present and the new weights.

    ``worse`` says in which way the new ones are worse, or is None.
    """

    reference: str
    label: str
    images: int
    right: tuple[int, int]
    filed_wrong: tuple[int, int]
    worse: str | None


@dataclass(frozen=True)
class ReferenceSet:
    """Images of one source, judged by both. The label after the last class is for outliers."""

    name: str
    labels: npt.NDArray[np.int64]
    before: Predictions
    after: Predictions


def compare(references: Sequence[ReferenceSet], classes: Sequence[str]) -> list[ClassComparison]:
    """Compare each class of each set that has images of it."""
    names = dict(enumerate(classes)) | {len(classes): "none of them"}
    return [
        _compare_class(ref, number, names[number], len(classes))
        for ref in references
        for number in np.unique(ref.labels).tolist()
    ]


def _compare_class(ref: ReferenceSet, number: int, name: str, none: int) -> ClassComparison:
    own = ref.labels == number
    good, bad = zip(
        *(_right_and_misfiled(predictions, own, number, none) for predictions in (ref.before, ref.after)), strict=True
    )
    worse = None
    if significant(int((good[0] & ~good[1]).sum()), int((good[1] & ~good[0]).sum())):
        worse = "fewer are right" if number < none else "more are filed"
    elif significant(int((bad[1] & ~bad[0]).sum()), int((bad[0] & ~bad[1]).sum())):
        worse = "more are filed wrong"
    counts = [(int(before.sum()), int(after.sum())) for before, after in (good, bad)]
    return ClassComparison(ref.name, name, int(own.sum()), counts[0], counts[1], worse)


def _right_and_misfiled(
    predictions: Predictions, own: npt.NDArray[np.bool_], number: int, none: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return masks of the images that are right and of those that are filed wrong. Outliers are right if not filed."""
    filed, label = predictions.filed[own], predictions.label[own]
    if number == none:
        return ~filed, filed
    return filed & (label == number), filed & (label != number)


def significant(losses: int, gains: int) -> bool:
    """Return True if so many losses against so many gains are more than chance, by a one-sided sign test."""
    trials = losses + gains
    if losses <= gains:
        return False
    tail = sum(math.comb(trials, k) for k in range(losses, trials + 1))
    return bool(tail / 2**trials < SIGNIFICANCE_LEVEL)


def confusion(ref: ReferenceSet, predictions: Predictions, classes: int) -> list[list[int]]:
    """Count images by class and none of them (rows), and by the class they are filed as and review (columns)."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    np.add.at(matrix, (ref.labels, np.where(predictions.filed, predictions.label, classes)), 1)
    return [[int(count) for count in row] for row in matrix]


def page(
    references: Sequence[ReferenceSet],
    lines: Sequence[ClassComparison],
    classes: Sequence[str],
    about: Mapping[str, str],
) -> str:
    """Return the report as Markdown: the comparisons, then both confusion matrices of each set."""
    refused = [line for line in lines if line.worse]
    parts = ["# New weights against the present ones", *(f"- {key}: {value}" for key, value in about.items()), ""]
    parts += [f"**{'Refused' if refused else 'Passed'}**" + "".join(f"; {_refusal(line)}" for line in refused), ""]
    parts += ["| reference | class | images | right, before | after | filed wrong, before | after | verdict |"]
    parts += ["|---|---|---|---|---|---|---|---|"]
    for line in lines:
        cells = (line.reference, line.label, line.images, *line.right, *line.filed_wrong, line.worse or "no worse")
        parts.append(f"| {' | '.join(map(str, cells))} |")
    for ref in references:
        for when, predictions in (("before", ref.before), ("after", ref.after)):
            parts += [
                "",
                f"## {ref.name}, {when}",
                "",
                *_confusion_rows(confusion(ref, predictions, len(classes)), classes),
            ]
    return "\n".join(parts) + "\n"


def _refusal(line: ClassComparison) -> str:
    return f"{line.label} of {line.reference}: {line.worse} ({line.right[0]} right before, {line.right[1]} after)"


def _confusion_rows(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[str]:
    head = ["true \\ filed as", *classes, "review"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in zip((*classes, "none of them"), counts, strict=True):
        if sum(row):
            rows.append(f"| {name} | {' | '.join(map(str, row))} |")
    return rows
