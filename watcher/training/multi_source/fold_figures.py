"""Judge the runs of the folds, and keep their figures in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.model import mednet
from watcher.training.multi_source import seed_spread, unseen_sources, verdict_benefit
from watcher.training.multi_source.fold_runs import FoldRuns
from watcher.training.multi_source.unseen_sources import NetworkProfile, Pictures
from watcher.training.site.rehearsal import Rehearsal

Figures = dict[str, Any]
"""The figures of one run, as plain values."""


def read(path: Path) -> dict[str, Figures]:
    """Read the figures of each run; an absent file has none.

    Raises:
        Fatal: The file is damaged (exit code 5).
    """
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
    except ValueError as error:
        raise Fatal(
            f"{path} is damaged, so the figures of what was judged can not be read: {error}",
            "Take it from version control, or remove it and run the steps judge and ship again.",
            Exit.DIRECTORY,
        ) from error


def write(path: Path, results: Mapping[str, Figures]) -> None:
    """Write the figures of each run, a line for each, whole or not at all."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results))
    with atomic_write.replacing(path) as partial:
        partial.write_text("{\n" + lines + "\n}\n", "utf-8")


def of_folds(results: Mapping[str, Figures]) -> dict[str, Figures]:
    """Return the figures of the folds alone, each with the first seed."""
    return {name: figures for name, figures in results.items() if seed_spread.is_fold(name)}


def judge(
    runs: FoldRuns, name: str, net: mednet.MedNet, pictures: Pictures, accept_rate: float
) -> tuple[Figures, NetworkProfile]:
    """Judge a network on what its run left out of the pool; ``pictures`` are those of the whole pool."""
    seen, left = runs.trained_on(name), runs.judged_on(name)
    profile = unseen_sources.measure_profile(net, runs.train, runs.valid, runs.pool.subset(seen), pictures[seen])
    measured = unseen_sources.judge(net, profile, runs.pool.subset(left), pictures[left], accept_rate)
    about = {"steps": runs.steps(name), "seed": runs.seeds[name], "pool_images": int(seen.sum())}
    return {**about, "accept_rate": accept_rate, **measured}, profile


def judge_fold(runs: FoldRuns, name: str, net: mednet.MedNet, pictures: Pictures, accept_rate: float) -> Figures:
    """Judge a network as :func:`judge` does, and what verdicts on the sources left out change."""
    figures, profile = judge(runs, name, net, pictures, accept_rate)
    memory, left = make_rehearsal(runs, name, net, pictures), runs.judged_on(name)
    taught = verdict_benefit.adapt_to_each_source(
        net, profile, memory, runs.pool.subset(left), pictures[left], accept_rate
    )
    refused = verdict_benefit.wrong_labels_are_refused(net, profile, memory, runs.train.classes, accept_rate)
    return {**figures, "taught": taught, "spoilt_refused": refused}


def make_rehearsal(runs: FoldRuns, name: str, net: mednet.MedNet, pictures: Pictures) -> Rehearsal:
    """Return the rehearsal of a network: of the base data and the part of the pool that it was trained on."""
    seen = runs.trained_on(name)
    return unseen_sources.make_rehearsal(net, runs.train, runs.valid, runs.pool.subset(seen), pictures[seen])
