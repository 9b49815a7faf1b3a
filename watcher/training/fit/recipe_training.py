"""Train a network by a named recipe on labelled images, and validate it on others after each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from watcher.images import decode
from watcher.model import checkpoint, mednet
from watcher.training.data import augmentation, labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import recipes, resume
from watcher.training.fit.gradient_descent import Averaging, Batch, Learner
from watcher.training.fit.recipes import Recipe
from watcher.training.fit.training_loop import EarlyStop, Epoch, Plan, TrainingRun

STATISTICS = 4096
"""Number of training images on which batch normalisation of an averaged network is measured."""


def prepare(
    recipe: Recipe, train: Examples, valid: Examples, out: Path, seed: int, *, keep_best: bool = True
) -> TrainingRun:
    """Return the training by a recipe, at its beginning.

    It writes ``best.safetensors``: the epoch with the fewest validation errors, the lower loss breaking a tie. Without
    ``keep_best`` it writes none.
    """
    recipe = recipes.for_classes(recipe, len(train.classes))
    torch.manual_seed(seed)
    net = mednet.MedNet(recipe.network)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    loss, averaging = _loss(recipe, train), _averaging(net, recipe, train, seed)
    learner = Learner(net, optimizer, loss, averaging, bfloat16=recipe.precision == "bfloat16")

    def save_weights(row: Epoch, is_best: bool) -> None:
        if is_best and keep_best:
            checkpoint.save(_checkpoint(recipe, learner.result, train, valid, seed, row), out / "best.safetensors")

    plan = Plan(
        max_epochs=recipe.max_epochs,
        batches=TrainingBatches(recipe, train, seed),
        save_weights=save_weights,
        validate=lambda judged: judge(judged, valid, loss),
        early_stop=EarlyStop(recipe.t2v_ratio, recipe.t2v_epochs),
    )
    identity = resume.Identity(recipe.plain(), seed, labelled_images.digest(train, valid))
    averaged = None if averaging is None else averaging.model
    return TrainingRun(out, learner, plan, resume.LastCheckpoint(out, identity, net, optimizer, averaged))


def _loss(recipe: Recipe, train: Examples) -> nn.CrossEntropyLoss:
    factors = torch.tensor([recipe.class_factors.get(name, 1.0) for name in train.classes])
    weights = class_weights(train.labels, len(train.classes)) * factors
    return nn.CrossEntropyLoss(weights / weights.mean(), label_smoothing=recipe.label_smoothing)


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Return weights (classes,) inverse to the class counts, averaging 1."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    inverse = 1.0 / np.maximum(counts, 1.0)
    return torch.tensor(inverse / inverse.mean(), dtype=torch.float32)


def _averaging(net: mednet.MedNet, recipe: Recipe, train: Examples, seed: int) -> Averaging | None:
    if recipe.averaging == "none":
        return None

    def images() -> Iterator[Tensor]:
        chosen = np.random.default_rng(seed).permutation(len(train.labels))[:STATISTICS]
        return (images for images, _ in batches(train, 256, chosen))

    if recipe.averaging == "swa":
        model = swa_utils.AveragedModel(net)
        return Averaging(model, every_step=False, first_epoch=recipe.max_epochs // 2 + 1, statistics=images)
    mean = swa_utils.get_ema_multi_avg_fn(0.99)  # type: ignore[no-untyped-call]
    return Averaging(swa_utils.AveragedModel(net, multi_avg_fn=mean), statistics=images)


@dataclass(frozen=True)
class TrainingBatches:
    """The batches of an epoch by a recipe: in an order drawn for that epoch, and augmented."""

    recipe: Recipe
    data: Examples
    seed: int

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """Draw the batches of an epoch, counted from 1."""
        recipe, data = self.recipe, self.data
        rng = np.random.default_rng([self.seed, epoch])
        order = drawn(data, recipe.resample, rng)
        for start in range(0, len(order), recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            labels = data.labels[chosen]
            images = augmentation.apply(data.images[chosen], labels, data.classes, recipe.augment, rng)
            share_done = (epoch - 1 + start / len(order)) / recipe.max_epochs
            yield Batch(
                torch.from_numpy(decode.standardise(images)),
                torch.from_numpy(labels),
                rate(recipe, share_done),
                weight=len(chosen),
            )


def drawn(data: Examples, resample: Mapping[str, float], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the order of one epoch: every image once, or as many images with some classes more or less often."""
    if not resample:
        return rng.permutation(len(data.labels))
    shares = np.array([resample.get(name, 1.0) for name in data.classes])[data.labels]
    return rng.choice(len(data.labels), size=len(data.labels), p=shares / shares.sum())


def rate(recipe: Recipe, share_done: float) -> float:
    """Return the learning rate once a share in [0, 1) of all steps is done."""
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * share_done)) / 2
    if recipe.schedule == "steps":
        return recipe.learning_rate * (0.1 if share_done >= 2 / 3 else 1.0)
    return recipe.learning_rate


def batches(data: Examples, size: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield standardised images (b, 1, 64, 64) and labels (b,), in the given order, without augmentation."""
    order = np.arange(len(data.labels)) if order is None else order
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield torch.from_numpy(decode.standardise(data.images[chosen])), torch.from_numpy(data.labels[chosen])


@torch.no_grad()
def judge(net: mednet.MedNet, data: Examples, loss: nn.Module) -> tuple[float, int]:
    """Return the mean loss per image and the number of wrong decisions, in evaluation mode."""
    net.eval()
    total, wrong = 0.0, 0
    for images, labels in batches(data, 256):
        logits = net(images).logits
        total += float(loss(logits, labels)) * len(labels)
        wrong += int((logits.argmax(1) != labels).sum())
    return total / max(len(data.labels), 1), wrong


def _checkpoint(
    recipe: Recipe, net: mednet.MedNet, train: Examples, valid: Examples, seed: int, row: Epoch
) -> checkpoint.Checkpoint:
    """Return the network as it stands, with what people should know of its training."""
    settings = recipe.plain()
    del settings["network"]
    return checkpoint.Checkpoint(
        name=f"mednet-{recipe.name}",
        architecture=recipe.network.to_dict(),
        classes=train.classes,
        tensors={name: value.numpy() for name, value in net.state_dict().items()},
        training={
            "recipe": settings,
            "seed": seed,
            "train_images": len(train.labels),
            "valid_images": len(valid.labels),
            **asdict(row),
        },
    )
