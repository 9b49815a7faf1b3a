"""Train a network epoch by epoch, with a checkpoint after each from which the training resumes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from watcher.core import atomic_write
from watcher.model import mednet
from watcher.training.fit import resume
from watcher.training.fit.gradient_descent import Batch, Learner


@dataclass(frozen=True)
class Epoch:
    """One line of ``losses.jsonl``. Losses are means; without a validation its figures are None.

    ``cpu_seconds`` are those of all threads: a busy machine or a pause adds nothing to them.
    """

    epoch: int
    train_loss: float
    valid_loss: float | None
    valid_errors: int | None
    overfit_epochs: int
    seconds: float
    cpu_seconds: float = 0.0

    @property
    def score(self) -> tuple[float, float]:
        """Validation errors, then validation loss: less is better. Infinite without a validation."""
        if self.valid_errors is None or self.valid_loss is None:
            return math.inf, math.inf
        return self.valid_errors, self.valid_loss


@dataclass(frozen=True)
class EarlyStop:
    """Ends a training whose validation loss was above ``ratio`` times the training loss in ``epochs`` epochs.

    The epochs need not be in a row, as in NVIDIA's MedNet notebook.
    """

    ratio: float
    epochs: int


@dataclass(frozen=True)
class Plan:
    """The parts of a training that differ from one kind to another.

    Attributes:
        max_epochs: The training ends after so many epochs.
        batches: Draws the batches of an epoch, given its number from 1.
        save_weights: Writes the network after an epoch. The flag is True if no epoch before had a better score.
        validate: Gives the mean loss and the number of errors of a network on the validation images.
        early_stop: A rule by which the training ends earlier.
    """

    max_epochs: int
    batches: Callable[[int], Iterable[Batch]]
    save_weights: Callable[[Epoch, bool], None]
    validate: Callable[[mednet.MedNet], tuple[float, int]] | None = None
    early_stop: EarlyStop | None = None


class TrainingRun:
    """One training in a directory of its own.

    ``last.pt`` is the checkpoint from which it resumes, ``losses.jsonl`` has a line for each epoch. The plan decides
    which weights are written.
    """

    def __init__(self, out: Path, learner: Learner, plan: Plan, last: resume.LastCheckpoint) -> None:
        self.out, self.learner, self.plan = out, learner, plan
        self.history: list[Epoch] = []
        self._last = last

    def resume(self) -> None:
        """Continue from ``last.pt``, if there is one.

        Raises:
            Fatal: The checkpoint is of another recipe, seed or version, or of other images (exit code 2), or it is
                damaged (exit code 5).
        """
        self.history = [Epoch(**row) for row in self._last.restore()]

    def finished(self) -> str | None:
        """Return why the training is over, or None while it is not."""
        stop = self.plan.early_stop
        if stop is not None and self.history and self.history[-1].overfit_epochs >= stop.epochs:
            return f"early stop: validation loss above {stop.ratio} x training loss in {stop.epochs} epochs"
        if len(self.history) >= self.plan.max_epochs:
            return f"all {self.plan.max_epochs} epochs done"
        return None

    def epoch(self, advance: Callable[[int], None] = lambda images: None) -> Epoch:
        """Train one epoch, validate, and write everything to disk. ``advance`` gets the images of each step."""
        started, cpu_started, number = time.monotonic(), time.process_time(), len(self.history) + 1
        train_loss = self._train(number, advance)
        valid_loss, valid_errors = None, None
        overfit_epochs = self.history[-1].overfit_epochs if self.history else 0
        if self.plan.validate is not None:
            valid_loss, valid_errors = self.plan.validate(self.learner.result)
            stop = self.plan.early_stop
            overfit_epochs += stop is not None and valid_loss > stop.ratio * train_loss
        spent = time.monotonic() - started, time.process_time() - cpu_started
        row = Epoch(number, train_loss, valid_loss, valid_errors, overfit_epochs, *spent)
        is_best = not self.history or row.score < min(earlier.score for earlier in self.history)
        self.history.append(row)
        self._write(row, is_best=is_best)
        return row

    def _train(self, number: int, advance: Callable[[int], None]) -> float:
        """Take the steps of one epoch, and return its mean loss."""
        learner = self.learner
        learner.net.train()
        total, weights = 0.0, 0.0
        for batch in self.plan.batches(number):
            total += learner.step(batch) * batch.weight
            weights += batch.weight
            advance(len(batch.labels))
        if learner.averaging is not None:
            learner.averaging.after_epoch(learner.net, number)
        return total / weights

    def _write(self, row: Epoch, *, is_best: bool) -> None:
        self.plan.save_weights(row, is_best)
        rows = [asdict(row) for row in self.history]
        # Before last.pt: a process that died between the two would never write this file for the last epoch.
        with atomic_write.replacing(self.out / "losses.jsonl") as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._last.save(rows)
