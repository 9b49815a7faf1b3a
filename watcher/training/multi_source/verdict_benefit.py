"""Measure what verdicts change: adapt a network to each source that it never saw, and judge it on the rest of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from watcher.model import mednet, out_of_distribution
from watcher.training.data.multi_source_pool import OUTLIER, Pool
from watcher.training.fit import calibration
from watcher.training.multi_source import unseen_sources
from watcher.training.site import fine_tuning, promotion_gate, rehearsal
from watcher.training.site.rehearsal import LayerOutputs, Rehearsal

MAX_VERDICTS = 50
"""The most verdicts of each class. They are at most half of its images."""

MIN_IMAGES = 20
"""The fewest images of a source. Of fewer the rest would be too small."""


def adapt_to_each_source(
    net: mednet.MedNet,
    profile: unseen_sources.NetworkProfile,
    memory: Rehearsal,
    pool: Pool,
    pictures: unseen_sources.Pictures,
    accept_rate: float,
) -> list[dict[str, Any]]:
    """Return a row for each source of the pool: how many images of its rest are not filed right, before and after."""
    classes = len(pool.classes)
    limits = profile.limits(accept_rate, classes)
    before = _Predictor(net, profile.known, profile.temperature, limits, classes)
    present = before(memory.valid)
    unseen = rehearsal.layer_outputs(net, pictures[pool.labels == OUTLIER, 0])
    rows = []
    for origin in sorted({o for o, n in zip(pool.origins, pool.labels, strict=True) if n != OUTLIER}):
        own = np.flatnonzero((np.array(pool.origins) == origin) & (pool.labels != OUTLIER))
        if len(own) < MIN_IMAGES:
            continue
        learnt = _learnt(own, pool.labels, np.random.default_rng(0))
        rest = np.setdiff1d(own, learnt)
        shown, labels = pictures[learnt, 0], pool.labels[learnt]
        adapted = fine_tuning.adapt(net, memory, shown, labels, pool.classes, accept_rate, present)
        after = _Predictor(adapted.net, adapted.known, adapted.temperature, adapted.limits, classes)
        inputs = rehearsal.layer_outputs(net, pictures[rest, 0])
        references = [
            promotion_gate.ReferenceSet("base validation", memory.valid_labels, present, after(memory.valid)),
            promotion_gate.ReferenceSet("rest of the source", pool.labels[rest], before(inputs), after(inputs)),
        ]
        strangers = [int(judge(unseen).filed.sum()) for judge in (before, after)]
        unseen_counts = {"unseen_strangers": len(unseen), "unseen_strangers_filed": strangers}
        rows.append({**_row(origin, len(learnt), references, classes, pool.classes), **unseen_counts})
    return rows


def wrong_labels_are_refused(
    net: mednet.MedNet, profile: unseen_sources.NetworkProfile, memory: Rehearsal, classes: tuple[str, ...], rate: float
) -> bool:
    """Return True if the gate refuses a network that was tuned with each class labelled as the next one."""
    count = len(classes)
    wrong = np.where(memory.train_labels < count, (memory.train_labels + 1) % count, count)
    spoilt = Rehearsal(memory.trunk, memory.train, wrong, memory.valid, memory.valid_labels)
    tuned = fine_tuning.tuned_on_rehearsal(net, spoilt)
    adapted = fine_tuning.calibrate(tuned, memory, memory.train[:1], memory.train_labels[:1], count, rate)
    before = _Predictor(net, profile.known, profile.temperature, profile.limits(rate, count), count)
    after = _Predictor(adapted.net, adapted.known, adapted.temperature, adapted.limits, count)
    pair = promotion_gate.ReferenceSet(
        "base validation", memory.valid_labels, before(memory.valid), after(memory.valid)
    )
    return any(line.worse for line in promotion_gate.compare([pair], classes))


class _Predictor:
    """A network with its thresholds, which predicts from outputs of the first linear layer."""

    def __init__(
        self,
        net: mednet.MedNet,
        known: out_of_distribution.KnownImages,
        temperature: float,
        limits: calibration.Thresholds,
        classes: int,
    ) -> None:
        self._net, self._known, self._temperature, self._limits, self._classes = (
            net,
            known,
            temperature,
            limits,
            classes,
        )

    def __call__(self, inputs: LayerOutputs) -> promotion_gate.Predictions:
        logits, features = fine_tuning.predict(self._net, inputs)
        shares = calibration.probabilities(logits, self._temperature)
        filed = self._limits.accept(shares, self._known.distance(features), self._classes)
        return promotion_gate.Predictions(shares[:, : self._classes].argmax(axis=1), filed)


def _learnt(
    own: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    chosen = []
    for label in np.unique(labels[own]):
        mine = rng.permutation(own[labels[own] == label])
        chosen.append(mine[: min(MAX_VERDICTS, len(mine) // 2)])
    return np.concatenate(chosen)


def _row(
    origin: str, verdicts: int, references: list[promotion_gate.ReferenceSet], classes: int, names: tuple[str, ...]
) -> dict[str, Any]:
    base, rest = references
    inside = base.labels < classes

    def lost(predictions: promotion_gate.Predictions) -> int:
        return int((~(predictions.filed & (predictions.label == rest.labels))).sum())

    def errors(predictions: promotion_gate.Predictions) -> int:
        return int((predictions.label != base.labels)[inside].sum())

    return {
        "origin": origin,
        "verdicts": verdicts,
        "rest": len(rest.labels),
        "lost": [lost(rest.before), lost(rest.after)],
        "valid_errors": [errors(base.before), errors(base.after)],
        "valid_filed": [float(predictions.filed[inside].mean()) for predictions in (base.before, base.after)],
        "strangers_filed": [int(predictions.filed[~inside].sum()) for predictions in (base.before, base.after)],
        "strangers": int((~inside).sum()),
        "refused": [
            f"{line.label} of {line.reference}: {line.worse}"
            for line in promotion_gate.compare(references, names)
            if line.worse
        ],
    }
