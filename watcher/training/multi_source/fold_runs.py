"""Train the networks that the folds ask for, and load those that are finished."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from watcher.core.errors import Exit, Fatal
from watcher.model import checkpoint, mednet
from watcher.training.data.labelled_images import Examples
from watcher.training.data.multi_source_pool import Pool
from watcher.training.fit import compression, networks
from watcher.training.fit.training_loop import TrainingRun
from watcher.training.multi_source import left_out_folds, mixture_training, seed_spread
from watcher.training.multi_source.left_out_folds import Folds
from watcher.training.multi_source.seed_spread import SHIPPED

NAME = "mednet-general"


@dataclass(frozen=True)
class FoldRuns:
    """The runs of a plan, each by its name: a fold, or :data:`SHIPPED`, or one of these with another seed.

    ``directory`` has a subdirectory for each run.
    """

    plan: Folds
    train: Examples
    valid: Examples
    pool: Pool
    directory: Path

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each run, in the order of training."""
        plan = self.plan
        more = {**{run: fold.more_seeds for run, fold in plan.folds.items()}, SHIPPED: plan.shipped.more_seeds}
        return {
            **dict.fromkeys(more, plan.seed),
            **{seed_spread.run_name(run, seed): seed for run, others in more.items() for seed in others},
        }

    def trained_on(self, name: str) -> npt.NDArray[np.bool_]:
        """Return a mask of the pool's images that a run is trained on."""
        run = seed_spread.fold_of(name)
        if run == SHIPPED:
            return ~np.isin(self.pool.grades, self.plan.shipped.without_grades)
        return left_out_folds.trained_on(self.plan.folds[run], self.pool)

    def judged_on(self, name: str) -> npt.NDArray[np.bool_]:
        """Return a mask of the pool's images that a run is judged on."""
        run = seed_spread.fold_of(name)
        return ~self.trained_on(name) if run == SHIPPED else left_out_folds.left_out(self.plan.folds[run], self.pool)

    def steps(self, name: str) -> int:
        """Return for how many steps a run is trained."""
        return self.plan.shipped.steps if seed_spread.fold_of(name) == SHIPPED else self.plan.steps

    def recipe(self, name: str) -> mixture_training.MixtureRecipe:
        """Return the recipe of a run."""
        return replace(mixture_training.MixtureRecipe(), steps=self.steps(name))

    def training(self, name: str) -> TrainingRun:
        """Return the training of a run, at the point where it was left."""
        part = self.pool.subset(self.trained_on(name))
        seed, out = self.seeds[name], self.directory / name
        training = mixture_training.prepare(self.recipe(name), self.train, part, out, seed, f"{NAME}-{name}")
        training.resume()
        return training

    def steps_done(self, name: str) -> int:
        """Return how many steps the network on disk was trained for."""
        path = self.directory / name / "net.safetensors"
        return int(checkpoint.load(path).training["steps"]) if path.exists() else 0

    def finished(self, name: str) -> mednet.MedNet:
        """Return the network of a run as it would be shipped: folded, its numbers halved.

        Raises:
            Fatal: The run has not begun, or is not finished (exit code 5).
        """
        done, steps = self.steps_done(name), self.steps(name)
        if done < steps:
            raise Fatal(
                f"{self.directory / name}: {done} of {steps} steps are done",
                "Run the step train until it is finished.",
                Exit.DIRECTORY,
            )
        net = networks.build(checkpoint.load(self.directory / name / "net.safetensors"))
        return compression.in_half_precision(mednet.fold_batch_norm(net))
