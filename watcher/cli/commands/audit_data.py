"""``audit-data``: twins across the split, errors without them, and labels in doubt."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from watcher.cli import judge_weights
from watcher.core import atomic_write, shipped_files
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint
from watcher.training.data import labelled_images
from watcher.training.fit import result_rows
from watcher.training.study import data_quality, study_plan, study_report


def run(args: argparse.Namespace) -> int:
    """Print the audit, and write it where ``report`` finds it; nowhere if there is no study."""
    train, valid = (
        labelled_images.load(labelled_images.listing(args.data, args.split, part))
        for part in (args.train_part, args.part)
    )
    labelled_images.refuse_broken(train, valid)
    near = data_quality.find_twins(valid, train)
    judged = [_judged(path, valid) for path in args.weights or [shipped_files.weights()]]
    parts = {args.train_part: train, args.part: valid}
    told = [lines for plan in args.study if plan.exists() and (lines := _of_study(plan, args, parts, near.reach))]
    page = data_quality.page((train, valid), data_quality.count_copies(train, valid), near, judged, told, _apart(args))
    out: Path | None = args.out or (args.study[0].parent if args.study[0].exists() else None)
    if out is not None:
        with atomic_write.replacing(out / "audit.md") as partial:
            partial.write_text(page, "utf-8")
    print(page)
    return Exit.OK


def _judged(path: Path, valid: labelled_images.Examples) -> tuple[str, str, list[str]]:
    weights = checkpoint.load(path)
    return weights.name, weights.digest[:12], [error.path for error in judge_weights.judge(weights, valid).errors]


def _of_study(
    path: Path, args: argparse.Namespace, parts: Mapping[str, labelled_images.Examples], reach: int
) -> list[str]:
    """What a study says, if it has runs on images of these parts: what twins are worth, and labels in doubt."""
    plan = study_plan.read(path)
    budget = plan.budget
    known = result_rows.named(args.runs, path.parent / "runs.jsonl")
    try:
        sample = study_plan.sample(args.data, args.split, budget)
    except Fatal as error:
        return [f"The study {path} can not be of these images, and takes no part: {error.problem}."]
    planned = {task.digest for task in study_plan.tasks(plan, sample)}
    runs = [row for row in known if row["digest"] in planned]
    if not runs or not {budget.train_part, budget.judge_part} <= parts.keys():
        return []
    learnt = _chosen(parts[budget.train_part], sample.train.paths)
    asked = _chosen(parts[budget.judge_part], sample.judge.paths)
    controls = {line.variant.name: line.runs for line in study_report.lines(plan, runs) if not line.variant.change}
    near = data_quality.find_twins(asked, learnt, reach)
    return [*data_quality.about_study(asked, near, controls), "", *data_quality.about_suspects(runs, controls)]


def _apart(args: argparse.Namespace) -> int:
    """Images of the split that are neither trained on nor judged, such as a test part."""
    with args.split.open(newline="", encoding="utf-8-sig") as file:
        return sum(row["split"] not in (args.train_part, args.part) for row in csv.DictReader(file))


def _chosen(data: labelled_images.Examples, paths: Sequence[str]) -> labelled_images.Examples:
    number = {path: place for place, path in enumerate(data.paths)}
    which = np.array([number[path] for path in paths], np.int64)
    return labelled_images.Examples(data.classes, tuple(paths), data.images[which], data.labels[which])
