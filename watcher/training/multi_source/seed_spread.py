"""Show trainings with several seeds side by side, because a part of each figure is luck."""

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
    """Return the name of a run with another seed."""
    return f"{run}{_SEED_MARK}{seed}"


def fold_of(run: str) -> str:
    """Return the fold, or :data:`SHIPPED`, that a run belongs to."""
    return run.partition(_SEED_MARK)[0]


def is_fold(run: str) -> bool:
    """Return True if a run counts for a fold: it is neither shipped nor one with another seed."""
    return run != SHIPPED and _SEED_MARK not in run


def shipped_recipe(judged: Mapping[str, Mapping[str, Any]], improved: Sequence[Row]) -> list[str]:
    """Return paragraphs of Markdown on the shipped recipe; none as long as it has one seed only.

    Args:
        judged: The figures of ``generalise``, by run.
        improved: Full trainings by the improved recipe, judged on the same images.
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
    """Return paragraphs of Markdown on folds with several seeds: the right predictions for each source, by seed."""
    by_run = {run: _by_seed(judged, run) for run in judged if is_fold(run)}
    several = {run: runs for run, runs in by_run.items() if len(runs) > 1}
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
Of a handful of images one more or less is chance. The same folds, trained with other seeds, say what to expect. Only
seed 0 counts everywhere else on this page."""


def _by_seed(judged: Mapping[str, Mapping[str, Any]], run: str) -> list[Mapping[str, Any]]:
    return sorted((each for name, each in judged.items() if fold_of(name) == run), key=lambda each: int(each["seed"]))


_ABOUT_SHIPPED = """\
Errors on the validation images by class, before anything is sent to a person. The improved recipe is judged
uncompressed, at the epoch with the fewest errors on these very images; the shipped one after its last step, as it is
stored. Seed 0 is shipped whatever the others do."""


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
