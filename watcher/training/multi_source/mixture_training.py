"""Training on several sources at once, and on what is none of the classes: a checkpoint every few hundred steps.

The base data (MedNIST) come half as they are and half as another hospital
might send them; the pool comes rendered at random; strangers, real and made,
have an answer of their own: one logit more than there are classes.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import swa_utils

from watcher.model import checkpoint, mednet
from watcher.training.data import hospital_renderings, synthetic_outliers
from watcher.training.data.hospital_renderings import BEARS, RandomDraws
from watcher.training.data.labelled_images import Examples
from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import resume


@dataclass(frozen=True)
class Mixture:
    """How the network that generalises is trained. Counts are of images a step."""

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
    """Share of the base images that are left as they are."""
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
    """Of the pooled images; those of a class are shared by the square root of each origin's size."""

    def plain(self) -> dict[str, Any]:
        """Plain values, equal to themselves after a trip through JSON."""
        return dict(json.loads(json.dumps(asdict(self))))


EPOCH = 500
"""Steps between two checkpoints."""


class Sampler:
    """Draws the images of a step. ``base`` is held as bytes, the pool at 64 x 64 with all levels."""

    def __init__(self, recipe: Mixture, base: Examples, pool: Pool, generator: torch.Generator) -> None:
        self.recipe, self.base, self.generator, self.classes = recipe, base, generator, base.classes
        levels = torch.from_numpy(pool.levels.astype(np.float32))[:, None]
        self.smooth = functional.avg_pool2d(levels, 2)[:, 0]  # (n, 64, 64)
        self.coarse = levels[:, 0, ::2, ::2].contiguous()
        self.tomograms = torch.tensor([name.endswith("CT") for name in base.classes])
        self.form = torch.tensor([{"hu": 0, "raw16": 1, "as_exported": 2}[each] for each in pool.renderings])
        self.labels = torch.from_numpy(pool.labels)
        inside = np.array([recipe.class_shares.get(base.classes[n], 0.0) if n != OUTLIER else 0.0 for n in pool.labels])
        origins = np.array([f"{n} {o}" for n, o in zip(pool.labels, pool.origins, strict=True)])
        self.inside = _weights(inside, pool.labels, origins)
        outside = (pool.labels == OUTLIER).astype(np.float64)
        self.outside = _weights(outside, pool.labels, np.array(pool.kinds))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Standardised images (b, 1, 64, 64) and labels (b,); strangers have the label after the last class."""
        r, none = self.recipe, len(self.classes)
        base, labels = self._of_base(r.base)
        pooled, pooled_labels = self._of_pool(self.inside, r.pooled)
        foreign, _ = self._of_pool(self.outside, r.foreign)
        which = torch.randperm(r.base + r.pooled, generator=self.generator)[: r.near]
        known, kinds = torch.cat([base, pooled])[which], torch.cat([labels, pooled_labels])[which]
        near = synthetic_outliers.from_images(known, kinds, self.tomograms, RandomDraws(self.generator, r.near))
        far = hospital_renderings.worn(
            synthetic_outliers.from_nothing(RandomDraws(self.generator, r.far)), RandomDraws(self.generator, r.far)
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
        dice = RandomDraws(self.generator, count)
        levels = torch.where(dice.chance(0.15), self.coarse[which], self.smooth[which])
        form = self.form[which].view(-1, 1, 1)
        images = torch.where(form == 0, hospital_renderings.from_hounsfield(levels, dice), levels / 255)
        images = torch.where(form == 1, hospital_renderings.from_raw(levels, dice), images)
        labels = self.labels[which]
        plain = dice.chance(0.2)
        return torch.where(plain, hospital_renderings.scaled(images), self._changed(images, labels)), labels

    def _changed(self, images: Tensor, labels: Tensor) -> Tensor:
        names = [self.classes[n] if n != OUTLIER else "outlier" for n in labels.tolist()]
        bears = [BEARS.get(name, BEARS["outlier"]) for name in names]
        dice = RandomDraws(self.generator, len(images))
        placed = hospital_renderings.placed(hospital_renderings.scaled(images), bears, dice)
        return hospital_renderings.worn(hospital_renderings.shaded(placed, bears, dice), dice)


def _weights(shares: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], groups: npt.NDArray[np.str_]) -> Tensor:
    """Weights of images so that each label has its share, and groups of it the square root of their size."""
    weights = np.zeros(len(labels))
    for label in np.unique(labels[shares > 0]):
        own = (labels == label) & (shares > 0)
        names, sizes = np.unique(groups[own], return_counts=True)
        each = dict(zip(names.tolist(), (1 / np.sqrt(sizes)).tolist(), strict=True))
        part = np.array([each[name] for name in groups[own].tolist()])
        weights[own] = shares[own] * part / part.sum()
    return torch.from_numpy(weights)


class Run:
    """One training in a directory of its own: ``last.pt`` resumes it, ``net.safetensors`` is the averaged network."""

    def __init__(self, recipe: Mixture, base: Examples, pool: Pool, out: Path, seed: int, name: str) -> None:
        self.recipe, self.out, self.seed, self.name, self.classes = recipe, out, seed, name, base.classes
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.sampler = Sampler(recipe, base, pool, self.generator)
        self.net = mednet.MedNet(recipe.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
            fused=True,
        )
        mean = swa_utils.get_ema_multi_avg_fn(recipe.averaged)  # type: ignore[no-untyped-call]
        self.averaged = swa_utils.AveragedModel(self.net, multi_avg_fn=mean, use_buffers=True)
        self.last = resume.Last(out, recipe.plain(), seed, self.net, self.optimizer, self.averaged)
        self.done = 0
        self.losses: list[dict[str, float]] = []

    @property
    def result(self) -> mednet.MedNet:
        """The network to be judged."""
        return cast(mednet.MedNet, self.averaged.module).eval()

    def resume(self) -> None:
        """Go on where ``last.pt`` ended.

        Raises:
            Fatal: exit code 2; it is of another recipe or seed.
        """
        state = self.last.restore()
        if state is not None:
            self.generator.set_state(state["generator"])
            self.done, self.losses = state["done"], state["losses"]

    def epoch(self) -> dict[str, float]:
        """Some hundred steps, then all of it on disk."""
        started, worked = time.monotonic(), time.process_time()
        self.net.train()
        total, steps = 0.0, min(EPOCH, self.recipe.steps - self.done)
        for _ in range(steps):
            total += self._step()
        row = {
            "steps": self.done,
            "loss": total / max(steps, 1),
            "seconds": time.monotonic() - started,
            "cpu_seconds": time.process_time() - worked,
        }
        self.losses.append(row)
        checkpoint.save(self.checkpoint(), self.out / "net.safetensors")
        self.last.save(generator=self.generator.get_state(), done=self.done, losses=self.losses)
        return row

    def _step(self) -> float:
        images, labels = self.sampler.draw()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.net(images.to(memory_format=torch.channels_last)).logits
        loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.averaged.update_parameters(self.net)
        self.done += 1
        return float(loss.detach())

    def _rate(self) -> float:
        rising = min(1.0, (self.done + 1) / self.recipe.warm_up)
        return self.recipe.learning_rate * rising * (1 + math.cos(math.pi * self.done / self.recipe.steps)) / 2

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The averaged network as it stands."""
        recipe = self.recipe.plain()
        del recipe["network"]
        return checkpoint.Checkpoint(
            name=self.name,
            architecture=self.recipe.network.to_dict(),
            classes=self.classes,
            tensors={name: value.contiguous().numpy() for name, value in self.result.state_dict().items()},
            training={"recipe": recipe, "seed": self.seed, "steps": self.done},
        )
