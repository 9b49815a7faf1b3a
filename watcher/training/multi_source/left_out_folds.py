"""Read the folds of the pool: the sources and kinds that a network is judged on, and not trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import plan_files


class Fold(plan_files.PlanPart):
    """The sources and kinds that one network is not trained on.

    ``more_seeds`` are for sources of so few images that one run says little.
    """

    sources: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    more_seeds: tuple[int, ...] = ()


class Shipped(plan_files.PlanPart):
    """The network for use: trained for more steps, and without images of some licences.

    Networks with ``more_seeds`` are trained and judged as well, and never shipped. They tell how much of the figures is
    luck.
    """

    steps: int = Field(gt=0)
    without_grades: tuple[str, ...] = ()
    more_seeds: tuple[int, ...] = ()


class Folds(plan_files.PlanPart):
    """The plan of all trainings."""

    seed: int
    steps: int = Field(gt=0)
    shipped: Shipped
    folds: dict[str, Fold]


def read(path: Path, pool: Pool) -> Folds:
    """Read the folds of a pool.

    Raises:
        Fatal: The file is wrong, or a source or kind of the pool is not in exactly one fold (exit code 3).
    """
    return plan_files.read(
        path, Folds, lambda plan: _contradictions(plan, pool), "docs/study/general/folds.yaml is an example."
    )


def _contradictions(plan: Folds, pool: Pool) -> list[str]:
    mistakes = []
    for field, known in (
        ("sources", {o for o, n in zip(pool.origins, pool.labels, strict=True) if n != OUTLIER}),
        ("kinds", {k for k, n in zip(pool.kinds, pool.labels, strict=True) if n == OUTLIER}),
    ):
        named = [name for fold in plan.folds.values() for name in getattr(fold, field)]
        mistakes += [f"{field}: the pool has no {name}" for name in sorted(set(named) - known)]
        mistakes += [f"{field}: {name} is in two folds" for name in sorted(set(named)) if named.count(name) > 1]
        mistakes += [f"{field}: {name} is in no fold" for name in sorted(known - set(named))]
    return mistakes


def left_out(fold: Fold, pool: Pool) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of what a fold judges on: images of classes of its sources, and outliers of its kinds."""
    inside = pool.labels != OUTLIER
    return np.where(inside, np.isin(pool.origins, fold.sources), np.isin(pool.kinds, fold.kinds))


def trained_on(fold: Fold, pool: Pool) -> npt.NDArray[np.bool_]:
    """Return a mask (n,) of what a fold trains on: nothing of its sources, outliers included, nor of its kinds."""
    seen: npt.NDArray[np.bool_] = ~(
        np.isin(pool.origins, fold.sources) | (np.isin(pool.kinds, fold.kinds) & (pool.labels == OUTLIER))
    )
    return seen
