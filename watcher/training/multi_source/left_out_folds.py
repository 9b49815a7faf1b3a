"""Folds of the pool: which sources and kinds a network is not trained on, to be judged on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import plan_files


class Fold(plan_files.PlanPart):
    """What one network is not trained on. ``more_seeds`` are for sources of so few images that one run says little."""

    sources: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    more_seeds: tuple[int, ...] = ()


class Shipped(plan_files.PlanPart):
    """The network for use: more steps, and no image of some licences.

    ``more_seeds`` are trained and judged as well, and shipped never: they tell
    how much of its figures is luck.
    """

    steps: int = Field(gt=0)
    without_grades: tuple[str, ...] = ()
    more_seeds: tuple[int, ...] = ()


class Folds(plan_files.PlanPart):
    """The whole file."""

    seed: int
    steps: int = Field(gt=0)
    shipped: Shipped
    folds: dict[str, Fold]


def read(path: Path, pool: Pool) -> Folds:
    """Read the folds of a pool.

    Raises:
        Fatal: exit code 3; the file is wrong, or leaves out what the pool does not have, or twice.
    """
    return plan_files.read(
        path, Folds, lambda found: _contradictions(found, pool), "docs/study/general/folds.yaml is an example."
    )


def _contradictions(found: Folds, pool: Pool) -> list[str]:
    wrong = []
    for what, known in (
        ("sources", {o for o, n in zip(pool.origins, pool.labels, strict=True) if n != OUTLIER}),
        ("kinds", {k for k, n in zip(pool.kinds, pool.labels, strict=True) if n == OUTLIER}),
    ):
        named = [name for fold in found.folds.values() for name in getattr(fold, what)]
        wrong += [f"{what}: the pool has no {name}" for name in sorted(set(named) - known)]
        wrong += [f"{what}: {name} is in two folds" for name in sorted(set(named)) if named.count(name) > 1]
        wrong += [f"{what}: {name} is in no fold" for name in sorted(known - set(named))]
    return wrong


def left_out(fold: Fold, pool: Pool) -> npt.NDArray[np.bool_]:
    """Mask (n,) of what the fold judges on: its sources' images of the classes, and strangers of its kinds."""
    inside = pool.labels != OUTLIER
    return np.where(inside, np.isin(pool.origins, fold.sources), np.isin(pool.kinds, fold.kinds))


def trained_on(fold: Fold, pool: Pool) -> npt.NDArray[np.bool_]:
    """Mask (n,) of what it is trained on: nothing of its sources, strangers neither, and nothing of its kinds."""
    seen: npt.NDArray[np.bool_] = ~(
        np.isin(pool.origins, fold.sources) | (np.isin(pool.kinds, fold.kinds) & (pool.labels == OUTLIER))
    )
    return seen
