"""``train``: train a network by a named recipe on a directory of class directories."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from watcher.core.errors import Exit, Fatal
from watcher.training.data import labelled_images
from watcher.training.fit import loss_chart, recipe_training, recipes, resume
from watcher.training.fit.training_loop import TrainingRun


def run(args: argparse.Namespace) -> int:
    """Train, resuming a run that ``--out`` holds, and print where the weights are."""
    console = Console(stderr=True)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    out: Path = args.out or Path("runs") / f"{args.recipe}-seed{args.seed}"
    console.print(f"reading {args.data} ...")
    data, valid = (
        labelled_images.load(labelled_images.listing(args.data, args.split, part))
        for part in (args.train_part, args.part)
    )
    labelled_images.refuse_broken(data, valid)
    labelled_images.refuse_unseen(data)
    with resume.claimed(out / "lock") as ours:
        if not ours:
            raise Fatal(f"another process trains in {out}", "Give --out another directory.", Exit.ALREADY_RUNNING)
        return _train(args, data, valid, out, console)


def _train(
    args: argparse.Namespace,
    data: labelled_images.Examples,
    valid: labelled_images.Examples,
    out: Path,
    console: Console,
) -> int:
    recipe = recipes.RECIPES[args.recipe]
    if missing := recipes.unknown_classes(recipe, data.classes):
        raise Fatal(
            f"the recipe {args.recipe} has settings for {', '.join(missing)}, which are no classes of {args.data}",
            "Name the class directories so, or take another --recipe.",
            Exit.DIRECTORY,
        )
    job = recipe_training.prepare(recipe, data, valid, out, args.seed)
    job.resume()
    console.print(
        f"{args.recipe}, seed {args.seed}: {len(data.labels)} training and "
        f"{len(valid.labels)} validation images, {len(job.history)} epochs done before, in {out}"
    )
    while not (ending := job.finished()):
        _epoch(job, len(data.labels), console)
        loss_chart.draw(job.history, out / "curves.png", f"MedNet, {args.recipe} recipe, seed {args.seed}")
    best = min(job.history, key=lambda row: row.score)
    console.print(f"{ending}")
    console.print(f"best epoch {best.epoch}: {best.valid_errors} of {len(valid.labels)} validation images wrong")
    console.print(f"weights: {out / 'best.safetensors'}")
    return Exit.OK


def _epoch(job: TrainingRun, images: int, console: Console) -> None:
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"epoch {len(job.history) + 1}", total=images)
        row = job.epoch(lambda done: bar.advance(task, done))
    console.print(
        f"epoch {row.epoch:2}  train loss {row.train_loss:.5f}  validation loss {row.valid_loss:.5f}  "
        f"errors {row.valid_errors:4}  overfit {row.overfit_epochs}  {row.seconds:.0f} s"
    )
