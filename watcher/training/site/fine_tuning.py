"""A site teaches the network: the last layers are tuned on its verdicts, the rest on what is rehearsed.

The convolutions and the first linear layer stay as they are, so that what the
network knew can be rehearsed from features alone. The site's images, and the
changed copies of them, also join those that are remembered, and the thresholds
are set anew.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from watcher.model import mednet, out_of_distribution
from watcher.training.data import hospital_renderings
from watcher.training.data.hospital_renderings import VARIATIONS, RandomDraws
from watcher.training.fit import calibration
from watcher.training.site import promotion_gate, rehearsal
from watcher.training.site.rehearsal import LayerOutputs, Rehearsal


@dataclass(frozen=True)
class Tuning:
    """How the last layers are tuned. Counts are of images a step."""

    steps: int = 600
    site: int = 48
    rehearsed: int = 144
    copies: int = 6
    """Changed copies of each of the site's images, besides itself."""
    learning_rate: float = 0.001
    weight: float = 0.3
    """Of the site's images, against what is rehearsed."""
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Adapted:
    """The tuned network, what it remembers as known, and its thresholds."""

    net: mednet.MedNet
    known: out_of_distribution.KnownImages
    temperature: float
    limits: calibration.Thresholds
    confidence: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float32]
    """Of the validation images, (n,) each: what other thresholds follow from."""
    review_rate: float
    """Of the validation images, at these thresholds."""

    def limits_at(self, accept_rate: float) -> calibration.Thresholds:
        """The thresholds that accept so many of the validation images."""
        return calibration.thresholds(self.confidence, self.distance, accept_rate)


def adapt(
    net: mednet.MedNet,
    memory: Rehearsal,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    accept_rate: float,
    present: promotion_gate.Predictions,
    tuning: Tuning = Tuning(),
) -> Adapted:
    """Tune a copy of ``net`` on images (n, 64, 64); the label after the last class is "none of them".

    ``present`` is what the weights in force say of the rehearsal's validation images: no step is taken that the gate
    would refuse, as far as these tell.
    """
    own, own_labels = _site_outputs(net, images, labels, classes, tuning)
    tuned = copy.deepcopy(net)
    _tune(tuned, memory, predict(net, memory.train)[0], (own, own_labels), tuning)

    def at(share: float) -> Adapted:
        return calibrate(_blend(net, tuned, share), memory, own, own_labels, len(classes), accept_rate)

    def keeps(found: Adapted) -> bool:
        return not _is_worse(present, found, memory, classes)

    return next(filter(keeps, map(at, BLEND_SHARES)), None) or at(0.0)


BLEND_SHARES = (1.0, 0.7, 0.4, 0.2)
"""How far from the old weights to the tuned ones: the first that forgets nothing is taken (Wortsman et al. 2022).

If none does, only what is remembered and the thresholds are new."""


def _blend(old: mednet.MedNet, tuned: mednet.MedNet, share: float) -> mednet.MedNet:
    """Of the last layers only: between two of them -0.0 becomes 0.0, and the rehearsal knows its trunk by bits.

    Rounded to half precision, as the file holds them: the thresholds are to be those of what is put in force.
    """
    mixed = copy.deepcopy(old)
    with torch.no_grad():
        for own, new in zip(_last_layers(mixed), _last_layers(tuned), strict=True):
            own.copy_(own.lerp(new, share).half())
    return mixed


def _last_layers(net: mednet.MedNet) -> list[torch.nn.Parameter]:
    return [*net.fc2.parameters(), *net.fc3.parameters()]


def _is_worse(before: promotion_gate.Predictions, after: Adapted, memory: Rehearsal, classes: Sequence[str]) -> bool:
    """Whether more validation images are told wrong, beyond chance, or the gate would find a class worse."""
    inside = memory.valid_labels < len(classes)
    told = before, _predictions(after, memory, len(classes))
    right = [(each.label == memory.valid_labels)[inside] for each in told]
    if promotion_gate.significant(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())):
        return True
    return any(
        line.worse
        for line in promotion_gate.compare([promotion_gate.ReferenceSet("", memory.valid_labels, *told)], classes)
    )


def _predictions(found: Adapted, memory: Rehearsal, classes: int) -> promotion_gate.Predictions:
    logits, far = predict(found.net, memory.valid)
    shares = calibration.probabilities(logits, found.temperature)
    filed = found.limits.accept(shares, found.known.distance(far), classes)
    return promotion_gate.Predictions(shares[:, :classes].argmax(axis=1), filed)


def tuned_on_rehearsal(net: mednet.MedNet, memory: Rehearsal) -> mednet.MedNet:
    """A copy tuned on what is rehearsed alone, whatever its labels say. With wrong ones: what a gate must refuse."""
    copied = copy.deepcopy(net)
    _tune(copied, memory, predict(net, memory.train)[0], (memory.train, memory.train_labels), Tuning(weight=10.0))
    return copied


def _site_outputs(
    net: mednet.MedNet,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    tuning: Tuning,
) -> tuple[LayerOutputs, npt.NDArray[np.int64]]:
    """The site's images and changed copies of them, as the first linear layer gives them."""
    draws = RandomDraws(torch.Generator().manual_seed(tuning.seed), len(images))
    names = [classes[label] if label < len(classes) else "outlier" for label in labels.tolist()]
    variations = [VARIATIONS.get(name, VARIATIONS["outlier"]) for name in names]
    shown = [rehearsal.layer_outputs(net, images)]
    for _ in range(tuning.copies):
        placed = hospital_renderings.repositioned(
            hospital_renderings.scaled(torch.from_numpy(images).float()), variations, draws
        )
        # A site frames its films as it does: copies framed otherwise would be remembered for nothing.
        changed = hospital_renderings.degraded(
            hospital_renderings.with_other_tones(placed, variations, draws), draws, framed=0.0
        )
        shown.append(rehearsal.layer_outputs(net, (changed * 255).round().byte().numpy()))
    return np.concatenate(shown), np.tile(labels, tuning.copies + 1)


def _tune(
    net: mednet.MedNet,
    memory: Rehearsal,
    before: calibration.Logits,
    site: tuple[LayerOutputs, npt.NDArray[np.int64]],
    tuning: Tuning,
) -> None:
    """Learn the site's labels; of what is rehearsed, keep the answers ``before`` (Hinton et al. 2015, distillation)."""
    own, own_labels = site
    goal = torch.from_numpy(calibration.probabilities(before)).float()
    net.train()
    rng = np.random.default_rng(tuning.seed)
    optimizer = torch.optim.SGD(_last_layers(net), lr=tuning.learning_rate, momentum=tuning.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, tuning.steps)
    shares = _balanced_chances(own_labels)
    for _ in range(tuning.steps):
        mine = rng.choice(len(own), tuning.site, p=shares)
        theirs = rng.integers(0, len(memory.train), tuning.rehearsed)
        logits = _last_layers_of(net, torch.from_numpy(np.concatenate([own[mine], memory.train[theirs]])))[0]
        learnt = functional.cross_entropy(logits[: tuning.site], torch.from_numpy(own_labels[mine]))
        kept = functional.cross_entropy(logits[tuning.site :], goal[theirs])
        optimizer.zero_grad()
        (learnt * tuning.weight + kept).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()


def _balanced_chances(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Chances by which every label comes as often."""
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return np.asarray(weights / weights.sum())


def _last_layers_of(net: mednet.MedNet, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and penultimate features of what the first linear layer gave."""
    narrow = net.act(net.fc2(net.drop(inputs)))
    return net.fc3(net.drop(narrow)), narrow


@torch.inference_mode()
def predict(net: mednet.MedNet, inputs: LayerOutputs) -> tuple[calibration.Logits, calibration.Features]:
    """Logits (n, k) and penultimate features (n, d) from what the first linear layer gave."""
    logits, narrow = _last_layers_of(net.eval(), torch.from_numpy(inputs))
    return logits.numpy(), narrow.numpy()


def calibrate(
    net: mednet.MedNet,
    memory: Rehearsal,
    own: LayerOutputs,
    labels: npt.NDArray[np.int64],
    classes: int,
    accept_rate: float,
) -> Adapted:
    """What the network remembers, its own images among it, and its thresholds: on what it was not tuned on."""
    inside, mine = memory.train_labels < classes, labels < classes
    _, features = predict(net, np.concatenate([memory.train[inside], own[mine]]))
    known = out_of_distribution.fit(features)
    valid = memory.valid_labels < classes
    logits, far = predict(net, memory.valid[valid])
    answered = memory.valid_labels[valid]
    heat = calibration.temperature(logits, answered, calibration.platt_smoothing(answered))
    shares = calibration.probabilities(logits, heat)
    sure, distance = shares[:, :classes].max(axis=1), known.distance(far)
    limits = calibration.thresholds(sure, distance, accept_rate)
    review_rate = 1 - float(limits.accept(shares, distance, classes).mean())
    return Adapted(net, known, heat, limits, sure, distance, review_rate)
