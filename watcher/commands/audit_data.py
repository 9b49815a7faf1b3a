"""``audit-data``: twins across the split, errors without them, and labels in doubt."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from watcher import assets, checkpoint, whole
from watcher.commands import evaluate as judging
from watcher.errors import Exit, Fatal
from watcher.training import audit_data, dataset, report, rows, study


def run(args: argparse.Namespace) -> int:
    """Print the audit, and write it where ``report`` finds it; nowhere if there is no study."""
    train, valid = (dataset.load(dataset.listing(args.data, args.split, part)) for part in (args.train_part, args.part))
    dataset.refuse_broken(train, valid)
    near = audit_data.find_twins(valid, train)
    judged = [_judged(path, valid) for path in args.weights or [assets.weights()]]
    told, doubted, costs = _of_study(args, {args.train_part: train, args.part: valid}, near.reach)
    copied, apart = audit_data.count_copies(train, valid), _apart(args)
    page = audit_data.page((train, valid), copied, near, judged, told, doubted, costs, apart)
    out: Path | None = args.out or (args.study.parent if args.study.exists() else None)
    if out is not None:
        with whole.written(out / "audit.md") as partial:
            partial.write_text(page, "utf-8")
    print(page)
    return Exit.OK


def _judged(path: Path, valid: dataset.Examples) -> tuple[str, str, list[str]]:
    weights = checkpoint.load(path)
    return weights.name, weights.digest[:12], [error.path for error in judging.judge(weights, valid).errors]


def _of_study(
    args: argparse.Namespace, parts: Mapping[str, dataset.Examples], reach: int
) -> tuple[list[str], Sequence[audit_data.Suspect], list[str]]:
    """What the study says, if it has runs on images of these parts: in lines, doubted labels, what they cost."""
    if not args.study.exists():
        return [], [], []
    plan = study.read(args.study)
    budget = plan.budget
    known = rows.named(args.runs, args.study.parent / "runs.jsonl")
    try:
        sample = study.sample(args.data, args.split, budget)
    except Fatal as error:
        return [f"The study {args.study} can not be of these images, and takes no part: {error.problem}."], [], []
    planned = {task.digest for task in study.tasks(plan, sample)}
    runs = [row for row in known if row["digest"] in planned]
    if not runs or not {budget.train_part, budget.judge_part} <= parts.keys():
        return [], [], []
    learnt = _chosen(parts[budget.train_part], sample.train.paths)
    asked = _chosen(parts[budget.judge_part], sample.judge.paths)
    lines = [line for line in report.lines(plan, runs) if line.is_control]
    doubted = audit_data.suspects(runs)
    near = audit_data.find_twins(asked, learnt, reach)
    told = audit_data.about_study(asked, near, {line.variant.name: line.runs for line in lines})
    return told, doubted, [f"`{line.variant.name}`: {audit_data.cost(doubted, line.runs)}" for line in lines]


def _apart(args: argparse.Namespace) -> int:
    """Images of the split that are neither trained on nor judged, such as a test part."""
    with args.split.open(newline="", encoding="utf-8-sig") as file:
        return sum(row["split"] not in (args.train_part, args.part) for row in csv.DictReader(file))


def _chosen(data: dataset.Examples, paths: Sequence[str]) -> dataset.Examples:
    number = {path: place for place, path in enumerate(data.paths)}
    which = np.array([number[path] for path in paths], np.int64)
    return dataset.Examples(data.classes, tuple(paths), data.images[which], data.labels[which])
