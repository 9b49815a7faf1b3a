"""Draw the figures of the report. The same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from watcher.training.fit.result_rows import Row

matplotlib.rcParams.update({"svg.hashsalt": "mednet-watcher", "svg.fonttype": "none"})

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def draw(controls: Mapping[str, Sequence[Row]], out: Path) -> list[tuple[str, str, str]]:
    """Draw the figures of the recipes themselves, and return the title, file name and caption of each."""
    if not controls:
        return []
    confusions(controls, out / "confusion.svg")
    reliability(controls, out / "reliability.svg")
    curves(controls, out / "curves.svg")
    return [
        (
            "Confusion of the recipes",
            "confusion.svg",
            "Mean counts over seeds. Errors are red, all panels on one scale.",
        ),
        (
            "How reliable is confidence?",
            "reliability.svg",
            "Of the trainings, without a temperature. A network that learns smoothed labels is less sure than it is "
            "right.",
        ),
        (
            "Losses while training",
            "curves.svg",
            "Thin lines are runs, thick ones the mean of the runs that go on. This is the loss that is trained on. "
            "With smoothed labels it has a floor above zero, so do not compare it across recipes.",
        ),
    ]


def curves(variants: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw losses over epochs: thin lines are runs, thick ones the mean of the runs that got so far."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, key, title in zip(axes, ("train_loss", "valid_loss"), ("training", "watched images"), strict=True):
        for colour, (name, runs) in zip(_COLOURS, variants.items(), strict=False):
            _curve(panel, [[epoch[key] for epoch in run["history"]] for run in runs], name, colour)
        panel.set(yscale="log", xlabel="epoch", title=f"loss, {title}")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    axes[0].legend()
    _save(figure, path)


def _curve(panel: Axes, losses: Sequence[Sequence[float]], name: str, colour: str) -> None:
    for line in losses:
        panel.plot(range(1, len(line) + 1), line, color=colour, alpha=0.35, linewidth=0.8)
    longest = max(map(len, losses))
    means = [fmean(line[epoch] for line in losses if len(line) > epoch) for epoch in range(longest)]
    panel.plot(range(1, longest + 1), means, color=colour, linewidth=2, label=name)


def confusions(variants: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw confusion matrices side by side, mean counts over seeds. The colour shows errors only."""
    figure = Figure(figsize=(5.2 * len(variants), 5.6), layout="constrained")
    panels = figure.subplots(1, len(variants), squeeze=False)[0]
    most = max([1.0, *(float(_wrong(_mean_confusion(runs)).max()) for runs in variants.values())])
    for panel, (name, runs) in zip(panels, variants.items(), strict=True):
        _confusion(panel, runs, most)
        errors = fmean(run["errors"] for run in runs)
        panel.set_title(f"{name}: {errors:.1f} errors of {runs[0]['judged']:,}, {len(runs)} seeds", fontsize=10)
    _save(figure, path)


def _mean_confusion(runs: Sequence[Row]) -> npt.NDArray[np.float64]:
    return np.asarray(np.mean([run["confusion"] for run in runs], axis=0))


def _wrong(mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return mean * (1 - np.eye(len(mean)))


def _confusion(panel: Axes, runs: Sequence[Row], most: float) -> None:
    """Draw one matrix; ``most`` errors in a cell are the darkest red."""
    names = runs[0]["classes"]
    mean = _mean_confusion(runs)
    panel.imshow(_wrong(mean), cmap="Reds", vmin=0, vmax=most)
    panel.set_xticks(range(len(names)), names, rotation=35, ha="right")
    panel.set_yticks(range(len(names)), names)
    panel.set(xlabel="predicted", ylabel="true")
    for row, column in np.ndindex(*mean.shape):
        count = mean[row, column]
        colour = "white" if row != column and count > 0.6 * most else "black"
        panel.text(column, row, f"{count:.0f}" if row == column else f"{count:.1f}" if count else "·",
                   ha="center", va="center", color=colour, fontsize=9)  # fmt: skip


def reliability(variants: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw the share of right predictions over confidence by bin, and below the images of each bin."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    for colour, (name, runs) in zip(_COLOURS, variants.items(), strict=False):
        counts, confidence, right = (np.sum([run["bins"][part] for run in runs], axis=0) for part in range(3))
        full = counts > 0
        ece = 100 * fmean(run["ece"] for run in runs)
        places = confidence[full] / counts[full]
        top.plot(places, right[full] / counts[full], "o-", color=colour, label=f"{name} (ECE {ece:.2f}%)")
        below.plot(places, counts[full] / len(runs), "o-", color=colour)
    top.set(ylabel="share right", title="reliability, 15 bins")
    below.set(yscale="log", xlabel="confidence", ylabel="images")
    top.legend()
    for panel in (top, below):
        panel.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nameless: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(path, metadata=nameless)
