"""Read the plan of a study: variants, each with one change of a recipe, and the budget of all of them."""

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
"""The version of what settings mean. A higher one makes rows of before rows of other runs."""


class Budget(plan_files.PlanPart):
    """The cost of every run, and the images that judge it. None stands for all images, or the recipe's own epochs.

    Training, watched and judged images are different ones. The watched images give the validation loss of each epoch.
    With ``watch_images`` 0 the judged ones do, as in ``train``. ``keep`` is the epoch whose network is judged,
    ``precision`` that of the recipes while training.
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
    """One row of the table. ``against`` is the variant that it is compared with, by default the unchanged recipe.

    ``seeds``, if given, are its own. The control of k other variants should have more seeds than they: about the root
    of k times as many, so that as few runs as possible tell most (Dunnett 1955). ``claim`` is the part of the change in
    the proof of concept: ``step`` was taken there, ``undone`` was taken there and is taken back here, ``tried`` was
    tried there and not taken.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    recipe: str
    change: dict[str, Any] = Field(default_factory=dict)
    against: str | None = None
    says: str = ""
    seeds: Seeds | None = Field(default=None, min_length=1)
    claim: Literal["step", "undone", "tried"] | None = None


class Study(plan_files.PlanPart):
    """The plan of a study. ``seeds`` are those of variants without seeds of their own."""

    seeds: Seeds = Field(min_length=1)
    budget: Budget
    variants: tuple[Variant, ...] = Field(min_length=1)

    def seeds_of(self, variant: Variant) -> Seeds:
        """Return the seeds that a variant is trained with."""
        return self.seeds if variant.seeds is None else variant.seeds


@dataclass(frozen=True)
class Sample:
    """The files that are trained on, watched and judged."""

    train: Listing
    watch: Listing
    judge: Listing

    @property
    def digest(self) -> str:
        """A digest of the names and labels of the files, 16 hexadecimal digits."""
        return _digest([[part.paths, part.labels] for part in (self.train, self.watch, self.judge)])


@dataclass(frozen=True)
class Task:
    """One run: a variant with a seed. ``digest`` covers all that its result depends on."""

    variant: Variant
    recipe: recipes.Recipe
    seed: int
    digest: str


def read(path: Path) -> Study:
    """Read the plan of a study.

    Raises:
        Fatal: The file is missing or wrong; it names each mistake with its place (exit code 3).
    """
    return plan_files.read(path, Study, _contradictions, "docs/study/study.yaml is one that can.")


def tasks(study: Study, sample: Sample) -> list[Task]:
    """Return all runs: every variant with the first seed, then with the second, so that some of them make a table.

    Raises:
        Fatal: A variant names a class that the images do not have (exit code 3).
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
    """Return the recipe with the variant's change. A budget of epochs removes the early stop, unless changed back."""
    base = replace(recipes.RECIPES[variant.recipe], precision=budget.precision)
    if budget.epochs is not None:
        epochs = budget.epochs[variant.recipe]
        base = replace(base, max_epochs=epochs, t2v_epochs=10**6)
    return recipes.with_changes(base, variant.change)


def sample(root: Path, split: Path, budget: Budget) -> Sample:
    """Draw the images, each class in its share of the whole. The same budget gives the same images.

    Raises:
        Fatal: The images cannot be listed, or a class has no training image (exit code 5); there are too few images
            (exit code 3).
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
    """Return an order of all images whose every beginning has each class in its share."""
    rng = np.random.default_rng(seed)
    classes = np.array(labels, np.int64)
    places = np.empty(len(classes))
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
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
            wrong.append(f"budget.epochs: there are no epochs for the recipe {variant.recipe}")
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
