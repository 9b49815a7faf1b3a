"""How much of a figure is luck: the same trainings with several seeds, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from watcher.training.fit.result_rows import Row
from watcher.training.multi_source.unseen_sources import VIEWS

SHIPPED = "shipped"

_HEAD = "| network | seed | errors | {classes} | wrong at 99% or more | ECE |"


_SEED_MARK = "-seed"


def run_name(run: str, seed: int) -> str:
    """What a run with another seed is called."""
    return f"{run}{_SEED_MARK}{seed}"


def fold_of(run: str) -> str:
    """The fold, or :data:`SHIPPED`, that a run is one of."""
    return run.partition(_SEED_MARK)[0]


def is_fold(run: str) -> bool:
    """Whether it is the run that counts for a fold: neither shipped nor one with another seed."""
    return run != SHIPPED and _SEED_MARK not in run


def shipped_recipe(judged: Mapping[str, Mapping[str, Any]], improved: Sequence[Row]) -> list[str]:
    """Paragraphs of Markdown; none while the shipped recipe has one seed only.

    Args:
        judged: what ``generalise`` found, by run.
        improved: full trainings by the improved recipe, judged on the same images.
    """
    general = _by_seed(judged, SHIPPED)
    if len(general) < 2:
        return []
    classes = list(general[0]["valid"]["errors_by_class"])
    lines = [_HEAD.format(classes=" | ".join(classes)), "|---" * (len(classes) + 5) + "|"]
    for title, rows in (("improved recipe", improved), ("as shipped", [_row(each) for each in general])):
        lines += [_line(title, str(row["seed"]), [row], classes) for row in rows]
        if len(rows) > 1:
            spread = stdev(row["errors"] for row in rows)
            lines.append(_line(f"**{title}**", f"mean of {len(rows)}, sd {spread:.1f}", rows, classes))
    return ["## The shipped recipe with other seeds", _ABOUT_SHIPPED, "\n".join(lines)]


def small_sources(judged: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Paragraphs of Markdown on folds with several seeds: what is told right of each source, as the files are."""
    found = {run: _by_seed(judged, run) for run in judged if is_fold(run)}
    several = {run: runs for run, runs in found.items() if len(runs) > 1}
    if not several:
        return []
    lines = ["| fold | class | source | images | right, by seed | mean share right |", "|---|---|---|---|---|---|"]
    for run, runs in sorted(several.items()):
        rows = [[row for row in each["sources"] if row["view"] == VIEWS[0]] for each in runs]
        for same in zip(*rows, strict=True):
            first, right = same[0], [row["right"] for row in same]
            share = fmean(right) / first["images"]
            by_seed = ", ".join(map(str, right))
            lines.append(
                f"| {run} | {first['class']} | {first['origin']} | {first['images']} | {by_seed} | {share:.1%} |"
            )
    return ["## Small sources, with other seeds", _ABOUT_SMALL, "\n".join(lines)]


_ABOUT_SMALL = """\
Of a handful of images one more or less is chance. The same folds, trained with other seeds, say what is to be expected;
seed 0 alone counts everywhere else on this page."""


def _by_seed(judged: Mapping[str, Mapping[str, Any]], run: str) -> list[Mapping[str, Any]]:
    return sorted((each for name, each in judged.items() if fold_of(name) == run), key=lambda each: int(each["seed"]))


_ABOUT_SHIPPED = """\
Errors on the validation images before anything is sent to a person, by class. Of the improved recipe the epoch with the
fewest errors on these very images is judged, uncompressed; of the shipped one the last step, as it is stored. Seed 0 is
shipped whatever the others do."""


def _row(judged: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": judged["seed"], **judged["valid"]}


def _line(title: str, seed: str, rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    def mean(values: Sequence[float]) -> str:
        return f"{fmean(values):.1f}" if len(values) > 1 else f"{values[0]}"

    by_class = [mean([row["errors_by_class"][label] for row in rows]) for label in classes]
    sure, ece = mean([row["sure_errors"] for row in rows]), fmean(row["ece"] for row in rows)
    return (
        f"| {title} | {seed} | {mean([row['errors'] for row in rows])} | {' | '.join(by_class)} | {sure} | {ece:.2%} |"
    )
