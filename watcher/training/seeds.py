"""The recipe that is shipped and the improved one side by side, each with several seeds, on the validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from watcher.training.rows import Row

SHIPPED = "shipped"

_HEAD = "| network | seed | errors | {classes} | wrong at 99% or more | ECE |"


def name(seed: int) -> str:
    """What a run of the shipped recipe with another seed is called."""
    return f"{SHIPPED}-seed{seed}"


def is_fold(run: str) -> bool:
    """Whether a run is one that leaves sources out, and not the shipped one or its like with another seed."""
    return run != SHIPPED and not run.startswith(name(0)[:-1])


def beside(judged: Mapping[str, Mapping[str, Any]], improved: Sequence[Row]) -> list[str]:
    """Paragraphs of Markdown; none while the shipped recipe has one seed only.

    Args:
        judged: what ``generalise`` found, by run.
        improved: full trainings by the improved recipe, judged on the same images.
    """
    general = sorted((each for run, each in judged.items() if not is_fold(run)), key=lambda each: int(each["seed"]))
    if len(general) < 2:
        return []
    classes = list(general[0]["valid"]["errors_by_class"])
    lines = [_HEAD.format(classes=" | ".join(classes)), "|---" * (len(classes) + 5) + "|"]
    for title, rows in (("improved recipe", improved), ("as shipped", [_row(each) for each in general])):
        lines += [_line(title, str(row["seed"]), [row]) for row in rows]
        if len(rows) > 1:
            spread = stdev(row["errors"] for row in rows)
            lines.append(_line(f"**{title}**", f"mean of {len(rows)}, sd {spread:.1f}", rows))
    return ["## With other seeds", _TOLD, "\n".join(lines)]


_TOLD = """\
Errors on the validation images before anything is sent to a person, by class. Of the improved recipe the epoch with the
fewest errors on these very images is judged, uncompressed; of the shipped one the last step, as it is stored. Seed 0 is
shipped whatever the others do."""


def _row(judged: Mapping[str, Any]) -> dict[str, Any]:
    return {"seed": judged["seed"], **judged["valid"]}


def _line(title: str, seed: str, rows: Sequence[Mapping[str, Any]]) -> str:
    def mean(values: Sequence[float]) -> str:
        return f"{fmean(values):.1f}" if len(values) > 1 else f"{values[0]}"

    by_class = [mean([row["errors_by_class"][label] for row in rows]) for label in rows[0]["errors_by_class"]]
    sure, ece = mean([row["sure_errors"] for row in rows]), fmean(row["ece"] for row in rows)
    return (
        f"| {title} | {seed} | {mean([row['errors'] for row in rows])} | {' | '.join(by_class)} | {sure} | {ece:.2%} |"
    )
