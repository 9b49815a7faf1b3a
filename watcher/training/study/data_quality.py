"""Find faults of the data: near-duplicates on both sides of the split, and labels that no network believes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from watcher.training.data import near_duplicates
from watcher.training.data.labelled_images import Examples
from watcher.training.fit.result_rows import Row

MIN_CONFIDENCE = 0.9
"""The least mean confidence of predictions that make a label suspected."""

MAX_ERROR_SHARE = 0.02
"""The largest share of errors of a run that has a say about labels."""

MIN_RUNS = 3
"""The fewest runs that can make a label suspected."""

CLASS_MIX_NOTE = """\
The images without a near-duplicate are another mixture of classes than the others, and no patient is known. So these
errors say what a new patient may cost, not what another hospital's scanner would."""


@dataclass(frozen=True)
class ExactCopies:
    """Groups of images that are equal pixel for pixel.

    ``surplus`` are all images of the groups but the first, ``across`` the validation images that are also training
    images, ``contradictions`` the paths of each group with two labels.
    """

    groups: int
    surplus: int
    by_class: Mapping[str, int]
    across: int
    contradictions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates of images among others.

    ``near`` is a mask (n,) of the images that have one, ``own`` and ``other`` (n,) are the distances in bits to the
    nearest image of their class and of another class.
    """

    max_distance: int
    near: npt.NDArray[np.bool_]
    own: npt.NDArray[np.uint8]
    other: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SuspectedLabel:
    """An image that at least half of the runs take for one and the same other class, with a high confidence."""

    path: str
    label: str
    taken_for: str
    runs: int
    of: int
    confidence: float


def count_exact_copies(train: Examples, valid: Examples) -> ExactCopies:
    """Count copies over both parts together."""
    labels = np.concatenate([train.labels, valid.labels])
    paths = train.paths + valid.paths
    groups = near_duplicates.exact_copies(np.concatenate([train.images, valid.images]))
    first = len(train.labels)
    return ExactCopies(
        groups=len(groups),
        surplus=sum(len(group) - 1 for group in groups),
        by_class=Counter(train.classes[labels[number]] for group in groups for number in group[1:]),
        across=sum(number >= first for group in groups if group[0] < first for number in group),
        contradictions=tuple(
            tuple(paths[number] for number in group) for group in groups if len(set(labels[group].tolist())) > 1
        ),
    )


def find_near_duplicates(images: Examples, others: Examples, max_distance: int | None = None) -> NearDuplicates:
    """Find images that have a near-duplicate of their class among others.

    Without ``max_distance`` it is the most that :data:`near_duplicates.CHANCE` allows.
    """
    own, other = near_duplicates.nearest_distances(images, others)
    limit = near_duplicates.largest_distance(other) if max_distance is None else max_distance
    return NearDuplicates(limit, own <= limit, own, other)


def suspected_labels(runs: Sequence[Row]) -> list[SuspectedLabel]:
    """Return images that at least half of the good runs take for one and the same other class, with high confidence.

    The order is by the number of runs, then by the confidence, highest first.
    """
    good = [run for run in runs if run["errors"] <= MAX_ERROR_SHARE * run["judged"]]
    against: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for run in good:
        for path, taken_for, confidence in run["wrong"]:
            against[path].append((taken_for, confidence))
    suspected = []
    for path, errors in against.items():
        [(name, count)] = Counter(name for name, _ in errors).most_common(1)
        mean = fmean(confidence for _, confidence in errors)
        if len(good) >= MIN_RUNS and count == len(errors) >= len(good) / 2 and mean >= MIN_CONFIDENCE:
            suspected.append(SuspectedLabel(path, path.split("/")[0], name, count, len(good), mean))
    return sorted(suspected, key=lambda label: (-label.runs, -label.confidence, label.path))


def wilson_upper_bound(wrong: int, of: int) -> float:
    """Return the upper end of the 95% interval of an error rate. Source: Wilson 1927, with z = 1.96."""
    if not of:
        return 1.0
    z, rate = 1.96, wrong / of
    middle, spread = rate + z * z / (2 * of), z * math.sqrt(rate * (1 - rate) / of + z * z / (4 * of * of))
    return (middle + spread) / (1 + z * z / of)


def page(
    parts: tuple[Examples, Examples],
    copied: ExactCopies,
    near: NearDuplicates,
    judged: Sequence[tuple[str, str, Sequence[str]]],
    studies: Sequence[Sequence[str]],
    apart: int,
) -> str:
    """Return the audit as Markdown.

    Args:
        parts: The training and the validation images.
        copied: Their exact copies.
        near: Near-duplicates of the validation images among the training images.
        judged: Name and digest of weights, and the paths of the validation images that they get wrong.
        studies: The lines of each study.
        apart: The number of images of the split that are in neither part.
    """
    train, valid = parts
    lines = ["## Audit of the data", "", "Generated by `mednet-watcher audit-data`; do not edit.", ""]
    lines += _about_copies(copied, len(train.labels), len(valid.labels))
    if apart:
        lines += [
            "",
            f"The split's other {apart:,} images have no part in this: neither their copies nor their labels.",
        ]
    lines += ["", *_about_near_duplicates(valid, near)]
    lines += [
        "",
        CLASS_MIX_NOTE,
        "",
        "| judged on validation | errors with a near-duplicate | without |",
        "|---|---|---|",
    ]
    lines += [_about_errors(f"{name} `{digest}`", valid, near, set(wrong)) for name, digest, wrong in judged]
    for study in studies:
        lines += ["", *study]
    if not studies:
        lines += ["", "No study has runs on these images, so none of their labels is judged."]
    return "\n".join(lines) + "\n"


def about_study(judged: Examples, near: NearDuplicates, runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return lines on the errors of variants of a study with and without a near-duplicate, mean over seeds.

    ``near`` are near-duplicates of the study's judged images among its training images.
    """
    total, count = len(judged.labels), int(near.near.sum())
    lines = [
        f"Of a study's {total:,} judged images {count:,} have a near-duplicate among those that it trained on:",
        "",
        "| variant | errors with a near-duplicate | without | seeds |",
        "|---|---|---|---|",
    ]
    paths = {path for path, is_near in zip(judged.paths, near.near, strict=True) if is_near}
    for name, rows in runs.items():
        listing = [run for run in rows if len(run["wrong"]) == run["errors"]]  # a failed run does not list them
        if not listing:
            continue
        errors = [sum(path in paths for path, _, _ in run["wrong"]) for run in listing]
        others = [run["errors"] - number for run, number in zip(listing, errors, strict=True)]
        cells = [_mean_rate(errors, count), _mean_rate(others, total - count)]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {len(listing)} |")
    return lines


def cost_of_suspects(suspected: Sequence[SuspectedLabel], runs: Sequence[Row]) -> str:
    """Say how many errors of the runs are those of suspected labels, in the mean."""
    paths = {label.path for label in suspected}
    cost = fmean(sum(path in paths for path, _, _ in run["wrong"]) for run in runs)
    return f"{cost:.1f} of {fmean(run['errors'] for run in runs):.1f} errors"


def _about_copies(copied: ExactCopies, train: int, valid: int) -> list[str]:
    classes = ", ".join(f"{name} {count}" for name, count in sorted(copied.by_class.items(), key=lambda x: -x[1]))
    lines = [
        f"Of {train + valid:,} images at hand ({train:,} for training, {valid:,} for validation), {copied.surplus} are "
        f"exact copies of another, pixel for pixel, in {copied.groups} groups ({classes or 'none'}). {copied.across} "
        f"validation images are copies of a training image. Groups with two labels: {len(copied.contradictions)}.",
    ]
    return lines + [f"- {', '.join(group)}" for group in copied.contradictions]


def _about_near_duplicates(valid: Examples, near: NearDuplicates) -> list[str]:
    shares = [f"{name} {_percent(near.near[valid.labels == label])}" for label, name in enumerate(valid.classes)]
    rows = [
        f"| {bits} | {_percent(near.own <= bits)} | {_percent(near.other <= bits)} |"
        for bits in sorted({0, 2, 4, near.max_distance, 8, 12, 16})
    ]
    return [
        "Neighbouring slices of one patient are on both sides of a random split. A near-duplicate is a training image "
        f"of the same class whose {near_duplicates.BITS}-bit difference hash differs in at most {near.max_distance} "
        f"bits. This is the most at which at most {near_duplicates.CHANCE:.1%} of the validation images have one that "
        f"near in another class. **{_percent(near.near)} of the validation images have a near-duplicate in training** "
        f"({', '.join(shares)}).",
        "",
        "| bits at most | in the own class | in another class |",
        "|---|---|---|",
        *rows,
    ]


def _about_errors(name: str, valid: Examples, near: NearDuplicates, wrong: set[str]) -> str:
    missed = np.array([path in wrong for path in valid.paths], bool)
    cells = []
    for mask in (near.near, ~near.near):
        count, of = int((missed & mask).sum()), int(mask.sum())
        cells.append(f"{count} of {of:,} ({_rate(count, of)}, at most {100 * wilson_upper_bound(count, of):.2f}%)")
    return f"| {name} | {' | '.join(cells)} |"


def about_suspects(runs: Sequence[Row], controls: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return lines on the labels that a study's runs make suspected, and what they cost the unchanged recipes."""
    suspected = suspected_labels(runs)
    if not suspected:
        return [
            f"No label of these is suspected: not by half of {MIN_RUNS} or more good runs, for the same class and with "
            f"a mean confidence of at least {MIN_CONFIDENCE:.0%}."
        ]
    lines = [
        f"Suspected label errors: {len(suspected)} of the judged images. At least half of the {suspected[0].of} "
        "runs take each for one and the same other class, with a mean confidence of at least "
        f"{MIN_CONFIDENCE:.0%}. Runs with more than {MAX_ERROR_SHARE:.0%} of errors have no say. A person must tell "
        "whether the label or the network is wrong.",
        "",
        "| image | taken for | by | mean confidence |",
        "|---|---|---|---|",
    ]
    lines += [f"| {s.path} | {s.taken_for} | {s.runs} of {s.of} | {s.confidence:.3f} |" for s in suspected]
    costs = [f"- `{name}`: {cost_of_suspects(suspected, rows)}" for name, rows in controls.items()]
    return [*lines, "", "What these images cost, mean over seeds:", "", *costs]


def _percent(mask: npt.NDArray[np.bool_]) -> str:
    return f"{100 * mask.mean():.1f}%" if len(mask) else "-"


def _rate(count: float, of: int) -> str:
    return f"{100 * count / of:.2f}%" if of else "-"


def _mean_rate(counts: Sequence[int], of: int) -> str:
    return f"{fmean(counts):.1f} of {of:,} ({_rate(fmean(counts), of)})"
