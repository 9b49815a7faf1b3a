"""Do the runs of a study one after the other. Several processes may share them.

The output directory has ``runs.jsonl`` (finished runs), ``work/<digest>`` (a run under way, with the checkpoint of its
last epoch) and ``images-*.npz`` (decoded images).
"""

from __future__ import annotations

import platform
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from watcher import __version__
from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, mednet
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import evaluation, networks, recipe_training, result_rows, resume
from watcher.training.fit.training_loop import Epoch, TrainingRun
from watcher.training.study import study_plan

MAX_LISTED = 1000
"""The most errors that a row lists. A run with more failed, and thousands of names say nothing more."""


@dataclass(frozen=True)
class Images:
    """The decoded images that a study trains on, watches and judges."""

    train: Examples
    watch: Examples
    judge: Examples


def images(sample: study_plan.Sample, out: Path) -> Images:
    """Decode the images of a sample, or read those that an earlier start has decoded to ``out``.

    Raises:
        Fatal: An image cannot be decoded (exit code 1), or the file of an earlier start is damaged (exit code 5).
    """
    kept = out / f"images-{sample.digest}.npz"
    parts = (sample.train, sample.watch, sample.judge)
    if not kept.exists():
        decoded = [labelled_images.load(part) for part in parts]
        labelled_images.refuse_broken(*decoded)
        with atomic_write.replacing(kept, concurrent=True) as partial:
            np.savez(partial, *(part.images for part in decoded))
    train_images, watched, judged = (
        Examples(part.classes, part.paths, stack, np.array(part.labels, np.int64))
        for part, stack in zip(parts, _stacks(kept), strict=True)
    )
    return Images(train_images, watched, judged)


def _stacks(kept: Path) -> list[npt.NDArray[np.uint8]]:
    try:
        with kept.open("rb") as file, np.load(file) as stacks:
            return [stacks[f"arr_{number}"] for number in range(3)]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:  # which one depends on where the damage is
        raise Fatal(
            f"{kept} is damaged, so no run can learn from it",
            "Remove it, and the images are decoded anew.",
            Exit.DIRECTORY,
        ) from error


def pending(tasks: list[study_plan.Task], *known: Path) -> list[study_plan.Task]:
    """Return the tasks without a row in any of the files, in their order."""
    done = {row["digest"] for row in result_rows.read(*known)}
    return [task for task in tasks if task.digest not in done]


def claimed(task: study_plan.Task, out: Path) -> AbstractContextManager[bool]:
    """Lock a task for this process, and yield False if another has it. A process that dies releases its tasks."""
    return resume.claimed(out / "work" / f"{task.digest}.lock")


def perform(
    task: study_plan.Task,
    budget: study_plan.Budget,
    data: Images,
    out: Path,
    on_epoch: Callable[[Epoch], None],
) -> result_rows.Row:
    """Train from the last checkpoint if there is one, judge, and append the row to ``runs.jsonl``."""
    work = out / "work" / task.digest
    best = budget.keep == "best"
    run = recipe_training.prepare(task.recipe, data.train, data.watch, work, task.seed, keep_best=best)
    run.resume()
    while not run.finished():
        on_epoch(run.epoch())
    net = networks.build(checkpoint.load(work / "best.safetensors")) if best else run.learner.result
    judged = evaluation.evaluate(data.judge, probabilities(net, data.judge))
    row = _row(task, run, len(data.train.labels), judged)
    if best:
        with atomic_write.replacing(out / "weights" / f"{task.variant.name}-seed{task.seed}.safetensors") as partial:
            shutil.copyfile(work / "best.safetensors", partial)
    result_rows.append(out / "runs.jsonl", row)  # from here on the run is done; until here it can be resumed
    shutil.rmtree(work)
    return row


@torch.no_grad()
def probabilities(net: mednet.MedNet, data: Examples) -> npt.NDArray[np.float64]:
    """Return the softmax of the logits, (n, classes), in double precision."""
    net.eval()
    parts = [
        torch.softmax(net(images).logits.double(), dim=1).numpy() for images, _ in recipe_training.batches(data, 64)
    ]
    return np.concatenate(parts)


def _row(task: study_plan.Task, run: TrainingRun, train_images: int, judged: evaluation.Evaluation) -> result_rows.Row:
    calibration = judged.reliability
    return {
        "variant": task.variant.name,
        "recipe": task.variant.recipe,
        "change": task.variant.change,
        "precision": task.recipe.precision,
        "seed": task.seed,
        "digest": task.digest,
        "classes": list(judged.classes),
        "train_images": train_images,
        "judged": judged.total,
        "errors": len(judged.errors),
        "errors_by_class": {name: sum(e.true == name for e in judged.errors) for name in judged.classes},
        "accuracy": _rounded(judged.correct / judged.total),
        "loss": _rounded(judged.loss),
        "ece": _rounded(calibration.error),
        "sure_errors": judged.sure_errors,
        "confusion": judged.confusion.tolist(),
        "bins": [[_rounded(v) for v in column] for column in zip(*calibration.bins, strict=True)],
        "wrong": _listed(judged.errors),
        "parameters": sum(p.numel() for p in run.learner.net.parameters()),
        "epochs": len(run.history),
        "history": [{k: _rounded(v) for k, v in asdict(epoch).items()} for epoch in run.history],
        "seconds": round(sum(epoch.seconds for epoch in run.history), 1),
        "cpu_seconds": round(sum(epoch.cpu_seconds for epoch in run.history), 1),
        "threads": torch.get_num_threads(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "mednet-watcher": __version__,
            "form": study_plan.FORM,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _listed(errors: Sequence[evaluation.Error]) -> list[list[object]]:
    return [] if len(errors) > MAX_LISTED else [[e.path, e.predicted, round(e.confidence, 4)] for e in errors]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if isinstance(value, float) else value
