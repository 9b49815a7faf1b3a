"""``ablate``: train the variants of a study with several seeds, and write a row for each run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from watcher.core.errors import Exit, Fatal
from watcher.training.fit import result_rows
from watcher.training.fit.training_loop import Epoch
from watcher.training.study import study_plan, study_runs


def run(args: argparse.Namespace) -> int:
    """Do the runs without a row, and print a line as each ends.

    Several processes with the same ``--out`` share the runs. After a kill the next start resumes from the last epoch.
    """
    plan = study_plan.read(args.study)
    known: Path = args.runs or args.study.parent / "runs.jsonl"
    fresh: Path = args.out / "runs.jsonl"
    if args.collect:
        return _collect(known, fresh)
    torch.set_num_threads(args.threads)
    sample = study_plan.sample(args.data, args.split, plan.budget)
    tasks = study_plan.tasks(plan, sample)
    left = study_runs.pending(tasks, known, fresh)
    _say(f"{len(tasks)} runs, {len(tasks) - len(left)} of them done before")
    if not left:
        return Exit.OK
    data = study_runs.images(sample, args.out)
    _say(
        f"{len(data.train.labels)} images to train on, {len(data.watch.labels)} to watch, "
        f"{len(data.judge.labels)} to judge on"
    )
    for task in left:
        with study_runs.claimed(task, args.out) as ours:
            if ours and study_runs.pending([task], known, fresh):
                _perform(task, plan.budget, data, args.out)
    others = len(study_runs.pending(tasks, known, fresh))
    _say(f"{others} runs are not done: other processes do them" if others else "all runs done")
    return Exit.OK


def _perform(task: study_plan.Task, budget: study_plan.Budget, data: study_runs.Images, out: Path) -> None:
    started = time.monotonic()
    name = f"{task.variant.name}, seed {task.seed}"

    def print_epoch(row: Epoch) -> None:
        _say(f"  {name}: epoch {row.epoch}, {row.valid_errors} errors watched, {row.seconds:.0f} s")

    row = study_runs.perform(task, budget, data, out, print_epoch)
    _say(f"{name}: {row['errors']} of {row['judged']} wrong, {time.monotonic() - started:.0f} s")


def _collect(known: Path, fresh: Path) -> int:
    if not fresh.exists():
        raise Fatal(f"{fresh} does not exist: no run has ended there", "Give --out what the runs had.", Exit.DIRECTORY)
    before = result_rows.read(known)
    found = result_rows.read(known, fresh)
    result_rows.write(known, found)
    _say(f"{len(found) - len(before)} new rows, {len(found)} in {known}")
    return Exit.OK


def _say(line: str) -> None:
    print(line, flush=True)
