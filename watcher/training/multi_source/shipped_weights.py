"""Make the weights that are shipped from a finished run: thresholds, operating points and what drift is measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from watcher.model import checkpoint, mednet
from watcher.training.fit import calibration
from watcher.training.multi_source import generalisation_report
from watcher.training.multi_source.fold_figures import Figures
from watcher.training.multi_source.fold_runs import NAME, FoldRuns
from watcher.training.multi_source.seed_spread import SHIPPED
from watcher.training.multi_source.unseen_sources import NetworkProfile


def make(
    runs: FoldRuns, net: mednet.MedNet, profile: NetworkProfile, figures: Figures, measured: Mapping[str, Figures]
) -> checkpoint.Checkpoint:
    """Return the checkpoint of the run ``shipped``; ``measured`` are the figures of the folds."""
    classes = runs.train.classes
    return checkpoint.Checkpoint(
        name=NAME,
        architecture=net.config.to_dict(),
        classes=classes,
        tensors={**{key: value.half().numpy() for key, value in net.state_dict().items()}, **profile.known.tensors()},
        thresholds={**figures["limits"], "temperature": profile.temperature},
        operating=_operating_points(profile, measured, len(classes)),
        training={
            "recipe": runs.recipe(SHIPPED).plain(),
            "seed": runs.plan.seed,
            "train_images": len(runs.train.labels),
            "pool_images": figures["pool_images"],
            "without_grades": list(runs.plan.shipped.without_grades),
            "valid_errors": figures["valid"]["errors"],
            "validation": _validation(profile, figures["limits"], classes),
        },
    )


def _operating_points(
    profile: NetworkProfile, measured: Mapping[str, Figures], classes: int
) -> tuple[dict[str, float], ...]:
    """Return the thresholds for each share of the base data to be filed, and what they cost on unseen sources."""
    if not measured:
        return ()
    return tuple(
        {
            "accept_rate": point["accept_rate"],
            "wrong_rate": point["filed_wrong"] / max(point["filed_right"] + point["filed_wrong"], 1),
            **asdict(profile.limits(point["accept_rate"], classes)),
        }
        for point in generalisation_report.operating_points(measured)
    )


def _validation(profile: NetworkProfile, limits: Mapping[str, float], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the daemon's figures on the validation images, against which drift is measured."""
    shares = calibration.probabilities(profile.logits, profile.temperature)
    filed = calibration.Thresholds(**limits).accept(shares, profile.known.distance(profile.features), len(classes))
    predicted, sure = shares[:, : len(classes)].argmax(axis=1), shares[:, : len(classes)].max(axis=1)
    mix = np.bincount(predicted, minlength=len(classes)) / len(predicted)
    return {
        "review_rate": round(1 - float(filed.mean()), 5),
        "confidence_mean": round(float(sure.mean()), 5),
        "class_mix": {name: round(float(share), 5) for name, share in zip(classes, mix, strict=True)},
    }
