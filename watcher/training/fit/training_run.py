"""Training by a named recipe, a checkpoint each epoch, resumable at any of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import checkpoint, mednet
from watcher.training.data import augmentation, labelled_images
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import recipes, resume
from watcher.training.fit.recipes import Recipe


@dataclass(frozen=True)
class Epoch:
    """One line of ``losses.jsonl``. Losses are class-weighted cross-entropies, per image.

    ``cpu_seconds`` are those of all threads: a busy machine or a pause adds nothing to them.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    valid_errors: int
    overfit_epochs: int
    seconds: float
    cpu_seconds: float = 0.0


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Weights (classes,) inverse to the class counts, averaging 1."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    inverse = 1.0 / np.maximum(counts, 1.0)
    return torch.tensor(inverse / inverse.mean(), dtype=torch.float32)


def batches(data: Examples, size: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised images (b, 1, 64, 64) and labels (b,), in the given order, as they are."""
    order = np.arange(len(data.labels)) if order is None else order
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield torch.from_numpy(decode.standardise(data.images[chosen])), torch.from_numpy(data.labels[chosen])


def drawn(data: Examples, resample: Mapping[str, float], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The order of one epoch: every image once, or classes so much oftener or rarer in as many images."""
    if not resample:
        return rng.permutation(len(data.labels))
    shares = np.array([resample.get(name, 1.0) for name in data.classes])[data.labels]
    return rng.choice(len(data.labels), size=len(data.labels), p=shares / shares.sum())


def rate(recipe: Recipe, share_done: float) -> float:
    """The learning rate once a share in [0, 1) of all steps is done."""
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * share_done)) / 2
    if recipe.schedule == "steps":
        return recipe.learning_rate * (0.1 if share_done >= 2 / 3 else 1.0)
    return recipe.learning_rate


def _averaged(net: mednet.MedNet, recipe: Recipe) -> swa_utils.AveragedModel | None:
    if recipe.averaging == "none":
        return None
    mean = swa_utils.get_ema_multi_avg_fn(0.99) if recipe.averaging == "ema" else None  # type: ignore[no-untyped-call]
    return swa_utils.AveragedModel(net, multi_avg_fn=mean)


STATISTICS = 4096
"""Training images that an averaged network's batch normalisation is measured on."""


@torch.no_grad()
def judge(net: mednet.MedNet, data: Examples, loss: nn.Module, size: int = 256) -> tuple[float, int]:
    """Mean loss per image and number of wrong decisions, in evaluation mode."""
    net.eval()
    total, wrong = 0.0, 0
    for images, labels in batches(data, size):
        logits = net(images).logits
        total += float(loss(logits, labels)) * len(labels)
        wrong += int((logits.argmax(1) != labels).sum())
    return total / max(len(data.labels), 1), wrong


class Run:
    """One training run in a directory of its own.

    ``last.pt`` resumes it, ``best.safetensors`` is the epoch with the fewest
    validation errors (the lower loss breaks a tie; not written without
    ``keep_best``), ``losses.jsonl`` the story.
    """

    def __init__(
        self, recipe: Recipe, train: Examples, valid: Examples, out: Path, seed: int, *, keep_best: bool = True
    ) -> None:
        recipe = recipes.for_classes(recipe, len(train.classes))
        self.recipe, self.train, self.valid, self.out, self.seed = recipe, train, valid, out, seed
        self.keep_best = keep_best
        self.history: list[Epoch] = []
        torch.manual_seed(seed)
        self.net = mednet.MedNet(recipe.network)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.averaged = _averaged(self.net, recipe)
        self.data = labelled_images.digest(train, valid)
        self.last = resume.Last(out, recipe.plain(), seed, self.net, self.optimizer, self.averaged)
        factors = torch.tensor([recipe.class_factors.get(name, 1.0) for name in train.classes])
        weights = class_weights(train.labels, len(train.classes)) * factors
        self.loss = nn.CrossEntropyLoss(weights / weights.mean(), label_smoothing=recipe.label_smoothing)

    @property
    def result(self) -> mednet.MedNet:
        """The network to be judged: with averaging the averaged one, as soon as there is one."""
        if self.averaged is not None and int(self.averaged.n_averaged):
            return cast(mednet.MedNet, self.averaged.module)
        return self.net

    def resume(self) -> None:
        """Go on where ``last.pt`` ended.

        Raises:
            Fatal: exit code 2; it is of another recipe or seed, or of other images.
        """
        state = self.last.restore()
        if state is not None:
            if state.get("data", self.data) != self.data:  # runs begun before this was written down have none
                raise Fatal(
                    f"{self.out} holds a run on other images or labels: gone on with, it would be of neither",
                    "Give --out another directory.",
                    Exit.USAGE,
                )
            self.history = [Epoch(**row) for row in state["history"]]

    def finished(self) -> str | None:
        """Why the run is over, or None while it goes on."""
        if self.history and self.history[-1].overfit_epochs >= self.recipe.t2v_epochs:
            recipe = self.recipe
            return f"early stop: validation loss above {recipe.t2v_ratio} x training loss in {recipe.t2v_epochs} epochs"
        if len(self.history) >= self.recipe.max_epochs:
            return f"all {self.recipe.max_epochs} epochs done"
        return None

    def epoch(self, tick: Callable[[int], None] = lambda images: None) -> Epoch:
        """Train one epoch, judge it on validation, and put all of it on disk."""
        started, worked, number = time.monotonic(), time.process_time(), len(self.history) + 1
        train_loss = self._descend(number, tick)
        self._measure_statistics()
        valid_loss, valid_errors = judge(self.result, self.valid, self.loss)
        overfit = self.history[-1].overfit_epochs if self.history else 0
        overfit += valid_loss > self.recipe.t2v_ratio * train_loss
        spent = time.monotonic() - started, time.process_time() - worked
        row = Epoch(number, train_loss, valid_loss, valid_errors, overfit, *spent)
        best = not self.history or (valid_errors, valid_loss) < min(
            (e.valid_errors, e.valid_loss) for e in self.history
        )
        self.history.append(row)
        self._write(best=best)
        return row

    def _descend(self, number: int, tick: Callable[[int], None]) -> float:
        rng = np.random.default_rng([self.seed, number])
        order = drawn(self.train, self.recipe.resample, rng)
        self.net.train()
        total, done = 0.0, 0
        for start in range(0, len(order), self.recipe.batch_size):
            chosen = order[start : start + self.recipe.batch_size]
            self._set_rate((number - 1 + done / len(order)) / self.recipe.max_epochs)
            total += self._step(chosen, rng) * len(chosen)
            done += len(chosen)
            tick(len(chosen))
        if self.averaged is not None and self.recipe.averaging == "swa" and 2 * number > self.recipe.max_epochs:
            self.averaged.update_parameters(self.net)
        return total / len(order)

    def _measure_statistics(self) -> None:
        """Batch normalisation of averaged weights needs the statistics of what *they* compute.

        Those of the network, or a mean of them, do not fit. Source: Izmailov et
        al. 2018, "Averaging Weights Leads to Wider Optima and Better
        Generalization", section 3.2.
        """
        if self.averaged is None or self.result is self.net:
            return
        chosen = np.random.default_rng(self.seed).permutation(len(self.train.labels))[:STATISTICS]
        images = (images for images, _ in batches(self.train, 256, chosen))
        swa_utils.update_bn(images, self.result)

    def _step(self, chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> float:
        """One step of gradient descent on some images; gives their mean loss before it."""
        labels = self.train.labels[chosen]
        images = augmentation.apply(self.train.images[chosen], labels, self.train.classes, self.recipe.augment, rng)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits = self.net(torch.from_numpy(decode.standardise(images))).logits
        loss = self.loss(logits.float(), torch.from_numpy(labels))
        loss.backward()
        self.optimizer.step()
        if self.averaged is not None and self.recipe.averaging == "ema":
            self.averaged.update_parameters(self.net)
        return float(loss.detach())

    def _set_rate(self, share_done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, share_done)

    def _write(self, *, best: bool) -> None:
        if best and self.keep_best:
            checkpoint.save(self.checkpoint(), self.out / "best.safetensors")
        rows = [asdict(row) for row in self.history]
        with atomic_write.written(self.out / "losses.jsonl") as partial:  # first: the last epoch's is not written again
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.last.save(history=rows, data=self.data)

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The network as it stands, with what people should know of its training."""
        recipe = self.recipe.plain()
        del recipe["network"]
        return checkpoint.Checkpoint(
            name=f"mednet-{self.recipe.name}",
            architecture=self.recipe.network.to_dict(),
            classes=self.train.classes,
            tensors={name: value.numpy() for name, value in self.result.state_dict().items()},
            training={
                "recipe": recipe,
                "seed": self.seed,
                "train_images": len(self.train.labels),
                "valid_images": len(self.valid.labels),
                **asdict(self.history[-1]),
            },
        )


def plot(history: list[Epoch], path: Path, title: str) -> None:
    """The curves of a run: losses above, validation errors below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    losses, errors = figure.subplots(2, 1, sharex=True)
    epochs = [row.epoch for row in history]
    losses.plot(epochs, [row.train_loss for row in history], "o-", label="training")
    losses.plot(epochs, [row.valid_loss for row in history], "s-", label="validation")
    losses.set(yscale="log", ylabel="weighted cross-entropy", title=title)
    losses.legend()
    errors.plot(epochs, [row.valid_errors for row in history], "s-", color="tab:red")
    errors.set(xlabel="epoch", ylabel="validation errors", ylim=(0, None))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
    errors.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
