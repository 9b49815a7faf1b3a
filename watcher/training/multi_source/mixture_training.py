"""Train on several sources at once, and on outliers, with a checkpoint every few hundred steps.

Half of the base data (MedNIST) come as they are, and half as another hospital might send them. The pool is rendered at
random. Outliers, real and synthetic, have an answer of their own: one logit more than there are classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import swa_utils

from watcher.model import checkpoint, mednet
from watcher.training.data import hospital_renderings, labelled_images, multi_source_pool, synthetic_outliers
from watcher.training.data.hospital_renderings import VARIATIONS, RandomDraws
from watcher.training.data.labelled_images import Examples
from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import resume
from watcher.training.fit.gradient_descent import Averaging, Batch, Learner
from watcher.training.fit.training_loop import Epoch, Plan, TrainingRun


@dataclass(frozen=True)
class MixtureRecipe:
    """The settings of the network that generalises. ``base`` to ``far`` are images of a step.

    ``base`` are of the base data, ``pooled`` of the pool's classes, ``foreign`` of the pool's outliers, ``near`` and
    ``far`` synthetic outliers. ``averaged`` is the weight of the mean before in the mean of the weights.
    """

    network: mednet.MedNetConfig = field(
        default=mednet.MedNetConfig(classes=7, none=True, filters=(16, 32, 96), kernels=(5, 5, 3), pool=2, dropout=0.2)
    )
    steps: int = 6000
    base: int = 64
    pooled: int = 48
    foreign: int = 32
    near: int = 16
    far: int = 6
    clean: float = 0.5
    """The share of the base images that stay as they are."""
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: int = 200
    averaged: float = 0.998
    class_shares: dict[str, float] = field(
        default_factory=lambda: {
            "ChestCT": 0.25,
            "AbdomenCT": 0.25,
            "HeadCT": 0.2,
            "CXR": 0.13,
            "BreastMRI": 0.13,
            "Hand": 0.04,
        }
    )
    """Shares of the pooled images. Within a class, origins have shares by the square root of their size."""

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain values, equal to themselves after a trip through JSON."""
        return dict(json.loads(json.dumps(asdict(self))))


STEPS_AN_EPOCH = 500
"""Steps between two checkpoints."""

GRADIENT_NORM = 5.0
"""The length to which longer gradients are cut."""


class Sampler:
    """Draws the images of each step. The base data are held as bytes, the pool at 64 x 64 with all levels."""

    def __init__(self, recipe: MixtureRecipe, base: Examples, pool: Pool, generator: torch.Generator) -> None:
        self.recipe, self.base, self.generator, self.classes = recipe, base, generator, base.classes
        levels = torch.from_numpy(pool.levels.astype(np.float32))[:, None]
        self.smooth = functional.avg_pool2d(levels, 2)[:, 0]  # (n, 64, 64)
        self.coarse = levels[:, 0, ::2, ::2].contiguous()
        self.tomograms = torch.tensor([name.endswith("CT") for name in base.classes])
        self.form = torch.tensor([{"hu": 0, "raw16": 1, "as_exported": 2}[rendering] for rendering in pool.renderings])
        self.labels = torch.from_numpy(pool.labels)
        inside = np.array([recipe.class_shares.get(base.classes[n], 0.0) if n != OUTLIER else 0.0 for n in pool.labels])
        origins = np.array([f"{n} {o}" for n, o in zip(pool.labels, pool.origins, strict=True)])
        self.inside = _weights(inside, pool.labels, origins)
        outside = (pool.labels == OUTLIER).astype(np.float64)
        self.outside = _weights(outside, pool.labels, np.array(pool.kinds))

    def epoch(self, number: int) -> Iterator[Batch]:
        """Draw the batches of an epoch, counted from 1."""
        for step in range(steps_done(number - 1, self.recipe.steps), steps_done(number, self.recipe.steps)):
            images, labels = self.draw()
            yield Batch(images.to(memory_format=torch.channels_last), labels, rate(self.recipe, step))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw standardised images (b, 1, 64, 64) and labels (b,). Outliers have the label after the last class."""
        r, none = self.recipe, len(self.classes)
        base, labels = self._of_base(r.base)
        pooled, pooled_labels = self._of_pool(self.inside, r.pooled)
        foreign, _ = self._of_pool(self.outside, r.foreign)
        which = torch.randperm(r.base + r.pooled, generator=self.generator)[: r.near]
        known, kinds = torch.cat([base, pooled])[which], torch.cat([labels, pooled_labels])[which]
        near = synthetic_outliers.near_outliers(known, kinds, self.tomograms, RandomDraws(self.generator, r.near))
        far = hospital_renderings.degraded(
            synthetic_outliers.far_outliers(RandomDraws(self.generator, r.far)), RandomDraws(self.generator, r.far)
        )
        images = torch.cat([base, pooled, foreign, near, far])
        answers = torch.cat([labels, pooled_labels, torch.full((len(foreign) + len(near) + len(far),), none)])
        return hospital_renderings.standardised(images), answers

    def _of_base(self, count: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(0, len(self.base.labels), (count,), generator=self.generator).numpy()
        images = torch.from_numpy(self.base.images[which]).float() / 255
        labels = torch.from_numpy(self.base.labels[which])
        clean = int(count * self.recipe.clean)
        if clean == count:
            return images, labels
        images[clean:] = self._changed(images[clean:], labels[clean:])
        return images, labels

    def _of_pool(self, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
        which = torch.multinomial(weights, count, replacement=True, generator=self.generator)
        draws = RandomDraws(self.generator, count)
        levels = torch.where(draws.chance(0.15), self.coarse[which], self.smooth[which])
        form = self.form[which].view(-1, 1, 1)
        images = torch.where(form == 0, hospital_renderings.from_hounsfield(levels, draws), levels / 255)
        images = torch.where(form == 1, hospital_renderings.from_raw(levels, draws), images)
        labels = self.labels[which]
        plain = draws.chance(0.2)
        return torch.where(plain, hospital_renderings.scaled(images), self._changed(images, labels)), labels

    def _changed(self, images: Tensor, labels: Tensor) -> Tensor:
        names = [self.classes[n] if n != OUTLIER else "outlier" for n in labels.tolist()]
        variations = [VARIATIONS.get(name, VARIATIONS["outlier"]) for name in names]
        draws = RandomDraws(self.generator, len(images))
        placed = hospital_renderings.repositioned(hospital_renderings.scaled(images), variations, draws)
        return hospital_renderings.degraded(hospital_renderings.with_other_tones(placed, variations, draws), draws)


def _weights(shares: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.str_]) -> Tensor:
    """Return weights (n,) by which each label has its share, and its groups the square root of their size."""
    weights = np.zeros(len(labels))
    for label in np.unique(labels[shares > 0]):
        own = (labels == label) & (shares > 0)
        names, sizes = np.unique(groups[own], return_counts=True)
        each = dict(zip(names.tolist(), (1 / np.sqrt(sizes)).tolist(), strict=True))
        part = np.array([each[name] for name in groups[own].tolist()])
        weights[own] = shares[own] * part / part.sum()
    return torch.from_numpy(weights)


def prepare(recipe: MixtureRecipe, base: Examples, pool: Pool, out: Path, seed: int, name: str) -> TrainingRun:
    """Return the training on a mixture, at its beginning. It writes ``net.safetensors``: the averaged network."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(recipe, base, pool, generator)
    net = mednet.MedNet(recipe.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=True,
        fused=True,
    )
    mean = swa_utils.get_ema_multi_avg_fn(recipe.averaged)  # type: ignore[no-untyped-call]
    averaged = swa_utils.AveragedModel(net, multi_avg_fn=mean, use_buffers=True)
    learner = Learner(
        net, optimizer, nn.CrossEntropyLoss(), Averaging(averaged), bfloat16=True, max_gradient_norm=GRADIENT_NORM
    )

    def save_weights(row: Epoch, is_best: bool) -> None:
        done = steps_done(row.epoch, recipe.steps)
        checkpoint.save(_checkpoint(recipe, learner.result, base.classes, seed, done, name), out / "net.safetensors")

    plan = Plan(math.ceil(recipe.steps / STEPS_AN_EPOCH), sampler.epoch, save_weights)
    identity = resume.Identity(recipe.plain(), seed, f"{labelled_images.digest(base)} {multi_source_pool.digest(pool)}")
    last = resume.LastCheckpoint(out, identity, net, optimizer, averaged, generator)
    return TrainingRun(out, learner, plan, last)


def steps_done(epochs: int, steps: int) -> int:
    """Return how many of ``steps`` are done after so many epochs."""
    return min(epochs * STEPS_AN_EPOCH, steps)


def rate(recipe: MixtureRecipe, step: int) -> float:
    """Return the learning rate of a step, counted from 0: it rises evenly at first, and falls as half a cosine."""
    rising = min(1.0, (step + 1) / recipe.warm_up)
    return recipe.learning_rate * rising * (1 + math.cos(math.pi * step / recipe.steps)) / 2


def _checkpoint(
    recipe: MixtureRecipe, net: mednet.MedNet, classes: tuple[str, ...], seed: int, steps: int, name: str
) -> checkpoint.Checkpoint:
    settings = recipe.plain()
    del settings["network"]
    return checkpoint.Checkpoint(
        name=name,
        architecture=recipe.network.to_dict(),
        classes=classes,
        tensors={name: value.contiguous().numpy() for name, value in net.state_dict().items()},
        training={"recipe": settings, "seed": seed, "steps": steps},
    )
