"""Draw the losses and the errors of a training over its epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from watcher.training.fit.training_loop import Epoch


def draw(history: Sequence[Epoch], path: Path, title: str) -> None:
    """Draw the losses above, and the validation errors below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    losses, errors = figure.subplots(2, 1, sharex=True)
    epochs = [row.epoch for row in history]
    losses.plot(epochs, [row.train_loss for row in history], "o-", label="training")
    losses.plot(epochs, np.array([row.valid_loss for row in history], float), "s-", label="validation")
    losses.set(yscale="log", ylabel="weighted cross-entropy", title=title)
    losses.legend()
    errors.plot(epochs, np.array([row.valid_errors for row in history], float), "s-", color="tab:red")
    errors.set(xlabel="epoch", ylabel="validation errors", ylim=(0, None))
    for axes in (losses, errors):
        axes.grid(alpha=0.3)
    errors.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
