"""Training by a named recipe, a checkpoint each epoch, resumable at any of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from watcher import checkpoint, decode, mednet
from watcher.errors import Exit, Fatal
from watcher.training.dataset import Examples


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Plain stochastic gradient descent. Stops early once the validation loss has
    been above ``t2v_ratio`` times the training loss in ``t2v_epochs`` epochs
    (not necessarily in a row), as NVIDIA's MedNet notebook does.
    """

    name: str
    network: mednet.MedNetConfig
    learning_rate: float
    batch_size: int
    t2v_ratio: float
    t2v_epochs: int
    max_epochs: int = 20


RECIPES = {
    "baseline": Recipe("baseline", mednet.BASELINE, 0.01, 300, 1.2, 3),
    "improved": Recipe("improved", mednet.IMPROVED, 0.05, 64, 1.5, 4),
}


@dataclass(frozen=True)
class Epoch:
    """One line of ``losses.jsonl``. Losses are class-weighted cross-entropies, per image."""

    epoch: int
    train_loss: float
    valid_loss: float
    valid_errors: int
    overfit_epochs: int
    seconds: float


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> Tensor:
    """Weights (classes,) inverse to the class counts, averaging 1."""
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    inverse = 1.0 / np.maximum(counts, 1.0)
    return torch.tensor(inverse / inverse.mean(), dtype=torch.float32)


def batches(data: Examples, size: int, order: npt.NDArray[np.int64] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised images (b, 1, 64, 64) and labels (b,), in the given order."""
    order = np.arange(len(data.labels)) if order is None else order
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield torch.from_numpy(decode.standardise(data.images[chosen])), torch.from_numpy(data.labels[chosen])


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
    validation errors (the lower loss breaks a tie), ``losses.jsonl`` the story.
    """

    def __init__(self, recipe: Recipe, train: Examples, valid: Examples, out: Path, seed: int) -> None:
        self.recipe, self.train, self.valid, self.out, self.seed = recipe, train, valid, out, seed
        self.history: list[Epoch] = []
        torch.manual_seed(seed)
        self.net = mednet.MedNet(recipe.network)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=recipe.learning_rate)
        self.loss = nn.CrossEntropyLoss(class_weights(train.labels, len(train.classes)))

    def resume(self) -> None:
        """Go on where ``last.pt`` ended, if it is there and of this very recipe and seed."""
        last = self.out / "last.pt"
        if not last.exists():
            return
        state = torch.load(last, weights_only=True)
        if state["recipe"] != json.loads(json.dumps(asdict(self.recipe))) or state["seed"] != self.seed:
            raise Fatal(
                f"{self.out} holds a run of another recipe or seed", "Give --out another directory.", Exit.USAGE
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
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
        started, number = time.monotonic(), len(self.history) + 1
        train_loss = self._descend(number, tick)
        valid_loss, valid_errors = judge(self.net, self.valid, self.loss)
        overfit = self.history[-1].overfit_epochs if self.history else 0
        overfit += valid_loss > self.recipe.t2v_ratio * train_loss
        row = Epoch(number, train_loss, valid_loss, valid_errors, overfit, time.monotonic() - started)
        best = not self.history or (valid_errors, valid_loss) < min(
            (e.valid_errors, e.valid_loss) for e in self.history
        )
        self.history.append(row)
        self._write(best=best)
        return row

    def _descend(self, number: int, tick: Callable[[int], None]) -> float:
        order = np.random.default_rng([self.seed, number]).permutation(len(self.train.labels))
        self.net.train()
        total = 0.0
        for images, labels in batches(self.train, self.recipe.batch_size, order):
            self.optimizer.zero_grad()
            loss = self.loss(self.net(images).logits, labels)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) * len(labels)
            tick(len(labels))
        return total / len(order)

    def _write(self, *, best: bool) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        if best:
            checkpoint.save(self.checkpoint(), self.out / "best.safetensors")
        state: dict[str, Any] = {
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "seed": self.seed,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [asdict(row) for row in self.history],
        }
        torch.save(state, self.out / "last.pt.partial")
        os.replace(self.out / "last.pt.partial", self.out / "last.pt")
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in self.history)
        (self.out / "losses.jsonl").write_text(lines)

    def checkpoint(self) -> checkpoint.Checkpoint:
        """The network as it stands, with what people should know of its training."""
        recipe = asdict(self.recipe)
        del recipe["network"]
        return checkpoint.Checkpoint(
            name=f"mednet-{self.recipe.name}",
            architecture=self.recipe.network.to_dict(),
            classes=self.train.classes,
            tensors={name: value.numpy() for name, value in self.net.state_dict().items()},
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
