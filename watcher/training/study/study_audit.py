"""Audit the images of a study: what near-duplicates are worth to its recipes, and which labels its runs doubt."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from watcher.core.errors import Fatal
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import result_rows
from watcher.training.study import data_quality, study_plan, study_report


def lines(
    path: Path, root: Path, split: Path, runs: Sequence[Path] | None, parts: Mapping[str, Examples], max_distance: int
) -> list[str]:
    """Return what a study says of the images, as Markdown; nothing if it has no runs on images of these parts.

    Args:
        path: The plan of the study.
        root: The directory of the images.
        split: The split of the images.
        runs: Files of the rows of its runs; None for ``runs.jsonl`` beside the plan.
        parts: Decoded images by the name of their part.
        max_distance: The most bits in which near-duplicates differ.
    """
    plan = study_plan.read(path)
    budget = plan.budget
    known = result_rows.read_named(runs, path.parent / "runs.jsonl")
    try:
        sample = study_plan.sample(root, split, budget)
    except Fatal as error:
        return [f"The study {path} can not be of these images, and takes no part: {error.problem}."]
    planned = {task.digest for task in study_plan.tasks(plan, sample)}
    rows = [row for row in known if row["digest"] in planned]
    if not rows or not {budget.train_part, budget.judge_part} <= parts.keys():
        return []
    learnt = _chosen(parts[budget.train_part], sample.train.paths)
    judged = _chosen(parts[budget.judge_part], sample.judge.paths)
    controls = {line.variant.name: line.runs for line in study_report.results(plan, rows) if not line.variant.change}
    near = data_quality.find_near_duplicates(judged, learnt, max_distance)
    return [*data_quality.about_study(judged, near, controls), "", *data_quality.about_suspects(rows, controls)]


def count_other_parts(split: Path, parts: Collection[str]) -> int:
    """Return how many images of a split are in none of these parts; those of a test part, for example."""
    with split.open(newline="", encoding="utf-8-sig") as file:
        return sum(row["split"] not in parts for row in csv.DictReader(file))


def _chosen(data: Examples, paths: Sequence[str]) -> Examples:
    number = {path: place for place, path in enumerate(data.paths)}
    which = np.array([number[path] for path in paths], np.int64)
    return Examples(data.classes, tuple(paths), data.images[which], data.labels[which])
