"""A study: variants, each one change away from a recipe, and the budget that all of them have."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.training.data import labelled_images
from watcher.training.data.labelled_images import Listing
from watcher.training.fit import plan_files, recipes

FORM = 1
"""Counted up when the same settings come to mean another training: rows of before are then no longer the same run."""


class Budget(plan_files.PlanPart):
    """What every run may cost, and what it is judged on. None: all images, or the recipe's own epochs.

    Training, watched and judged images are different ones. The watched ones
    give the validation loss of each epoch; with ``watch_images`` 0 the judged
    ones do, as in ``train``. ``keep`` says which epoch's network is judged,
    ``precision`` how the recipes compute while training.
    """

    train_part: str = "train"
    judge_part: str = "train"
    train_images: int | None = Field(None, gt=0)
    watch_images: int = Field(0, ge=0)
    judge_images: int | None = Field(None, gt=0)
    sample_seed: int = Field(0, ge=0)
    epochs: dict[str, Annotated[int, Field(gt=0)]] | None = None
    keep: Literal["last", "best"] = "last"
    precision: Literal["float32", "bfloat16"] = "float32"


Seeds = tuple[Annotated[int, Field(ge=0)], ...]


class Variant(plan_files.PlanPart):
    """One row of the table. ``against`` names the variant it is compared with: by default its recipe's own.

    ``seeds``, where given, are its own. What all others are compared with deserves more than they: with k of them
    the fewest runs in all tell most when it has about the root of k times as many (Dunnett 1955).
    ``claim`` says what the proof of concept had to do with the change: ``step`` is one that it took, ``undone`` one
    that is taken back here, ``tried`` one that it tried and did not take.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    recipe: str
    change: dict[str, Any] = Field(default_factory=dict)
    against: str | None = None
    says: str = ""
    seeds: Seeds | None = Field(default=None, min_length=1)
    claim: Literal["step", "undone", "tried"] | None = None


class Study(plan_files.PlanPart):
    """The whole file. ``seeds`` are those of variants without seeds of their own."""

    seeds: Seeds = Field(min_length=1)
    budget: Budget
    variants: tuple[Variant, ...] = Field(min_length=1)

    def seeds_of(self, variant: Variant) -> Seeds:
        """Those that the variant is trained with."""
        return self.seeds if variant.seeds is None else variant.seeds


@dataclass(frozen=True)
class Sample:
    """Which files are trained on, watched and judged."""

    train: Listing
    watch: Listing
    judge: Listing

    @property
    def digest(self) -> str:
        """Of the files' names and labels; 16 hexadecimal digits."""
        return _digest([[part.paths, part.labels] for part in (self.train, self.watch, self.judge)])


@dataclass(frozen=True)
class Task:
    """One run: a variant with a seed. ``digest`` is of all that its result depends on."""

    variant: Variant
    recipe: recipes.Recipe
    seed: int
    digest: str


def read(path: Path) -> Study:
    """Read a study.

    Raises:
        Fatal: exit code 3; the file is missing or wrong, each mistake by its place in it.
    """
    return plan_files.read(path, Study, _contradictions, "docs/study/study.yaml is one that can.")


def tasks(study: Study, sample: Sample) -> list[Task]:
    """Every run, all variants with the first seed before any with the second: a part of them is a table already.

    Raises:
        Fatal: exit code 3; a variant is about a class that the images do not have.
    """
    planned = [(variant, planned_recipe(variant, study.budget)) for variant in study.variants]
    for variant, recipe in planned:
        unknown = recipes.unknown_classes(recipe, sample.train.classes)
        if unknown:
            raise Fatal(
                f"{variant.name}: no image is of the class {', '.join(unknown)}, so that would change nothing",
                f"The classes are {', '.join(sample.train.classes)}.",
                Exit.CONFIG,
            )
    return [
        Task(variant, recipe, seed, _run_digest(recipe, seed, study.budget, sample))
        for seed in sorted({seed for variant in study.variants for seed in study.seeds_of(variant)})
        for variant, recipe in planned
        if seed in study.seeds_of(variant)
    ]


def planned_recipe(variant: Variant, budget: Budget) -> recipes.Recipe:
    """The recipe with the variant's change. A budget of epochs also takes the early stop away, unless changed back."""
    base = replace(recipes.RECIPES[variant.recipe], precision=budget.precision)
    if budget.epochs is not None:
        epochs = budget.epochs[variant.recipe]
        base = replace(base, max_epochs=epochs, t2v_epochs=10**6)
    return recipes.with_changes(base, variant.change)


def sample(root: Path, split: Path, budget: Budget) -> Sample:
    """Draw the images, each class in its share of the whole, the same ones each time.

    Raises:
        Fatal: exit code 5 as for :func:`dataset.listing`; exit code 3 if there are too few images.
    """
    files = labelled_images.listing(root, split, budget.train_part)
    order = stratified(files.labels, budget.sample_seed)
    train = len(order) if budget.train_images is None else budget.train_images
    watched = train + budget.watch_images
    if budget.judge_part == budget.train_part:
        others = files
        left = order[watched:]
    else:
        others = labelled_images.listing(root, split, budget.judge_part)
        left = stratified(others.labels, budget.sample_seed)
    judged = len(left) if budget.judge_images is None else budget.judge_images
    if watched > len(order) or not 0 < judged <= len(left):
        raise Fatal(
            f"{split} has {len(order)} images to train on: too few for the budget", "Ask for fewer images.", Exit.CONFIG
        )
    judge, learnt = _chosen(others, left[:judged]), _chosen(files, order[:train])
    labelled_images.refuse_unseen(learnt)
    return Sample(learnt, _chosen(files, order[train:watched]) if budget.watch_images else judge, judge)


def stratified(labels: tuple[int, ...], seed: int) -> npt.NDArray[np.int64]:
    """An order of all images of which every beginning has each class in its share."""
    rng = np.random.default_rng(seed)
    each = np.array(labels, np.int64)
    places = np.empty(len(each))
    for label in np.unique(each):
        members = rng.permutation(np.flatnonzero(each == label))
        places[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(places, kind="stable")


def _contradictions(study: Study) -> list[str]:
    names = [variant.name for variant in study.variants]
    wrong = [f"{name}: two variants have this name" for name in sorted(set(names)) if names.count(name) > 1]
    for where, seeds in (("", study.seeds), *((f"{v.name}: ", v.seeds or ()) for v in study.variants)):
        wrong += [f"{where}seeds: {seed} is there twice" for seed in sorted(set(seeds)) if seeds.count(seed) > 1]
    for variant in study.variants:
        if variant.recipe not in recipes.RECIPES:
            wrong.append(f"{variant.name}: there is no recipe {variant.recipe}; there are {', '.join(recipes.RECIPES)}")
            continue
        if study.budget.epochs is not None and variant.recipe not in study.budget.epochs:
            wrong.append(f"budget.epochs: nothing is said of the recipe {variant.recipe}")
            continue
        if variant.against is not None and variant.against not in names:
            wrong.append(f"{variant.name}: there is no variant {variant.against} to compare it with")
        try:
            planned_recipe(variant, study.budget)
        except ValueError as error:
            wrong.append(f"{variant.name}: {error}")
    return wrong


def _chosen(files: Listing, which: npt.NDArray[np.int64]) -> Listing:
    return Listing(
        files.root, files.classes, tuple(files.paths[i] for i in which), tuple(files.labels[i] for i in which)
    )


def _run_digest(recipe: recipes.Recipe, seed: int, budget: Budget, sample: Sample) -> str:
    return _digest([FORM, decode.PREPROCESSING, recipe.non_default(), seed, budget.keep, sample.digest])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
