"""Adapt a network to a site: tune the last layers on its verdicts and on a rehearsal of what the network knew.

The convolutions and the first linear layer stay as they are, so that features suffice for the rehearsal. The site's
images and changed copies of them also become known images, and the thresholds are set anew.
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
    """Settings of the tuning. ``site`` and ``rehearsed`` are images of a step."""

    steps: int = 600
    site: int = 48
    rehearsed: int = 144
    copies: int = 6
    """Changed copies of each image of the site, besides itself."""
    learning_rate: float = 0.001
    weight: float = 0.3
    """The weight of the site's images in the loss, compared with the rehearsed ones."""
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Adapted:
    """An adapted network with its known images and its thresholds."""

    net: mednet.MedNet
    known: out_of_distribution.KnownImages
    temperature: float
    limits: calibration.Thresholds
    confidence: npt.NDArray[np.float64]
    distance: npt.NDArray[np.float32]
    """Confidence and distance of the validation images, (n,) each, from which other thresholds follow."""
    review_rate: float
    """The share of the validation images that goes to review at these thresholds."""

    def limits_at(self, accept_rate: float) -> calibration.Thresholds:
        """Return the thresholds that accept this share of the validation images."""
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
    """Tune a copy of ``net`` on images (n, 64, 64); the label after the last class is for outliers.

    ``present`` are the predictions of the weights in force for the rehearsal's validation images. The result is no
    network that the gate would refuse by these images.
    """
    own, own_labels = _site_outputs(net, images, labels, classes, tuning)
    tuned = copy.deepcopy(net)
    _tune(tuned, memory, predict(net, memory.train)[0], (own, own_labels), tuning)

    def at(share: float) -> Adapted:
        return calibrate(_blend(net, tuned, share), memory, own, own_labels, len(classes), accept_rate)

    candidates = map(at, BLEND_SHARES)
    return next((each for each in candidates if not _is_worse(present, each, memory, classes)), None) or at(0.0)


BLEND_SHARES = (1.0, 0.7, 0.4, 0.2)
"""Shares of the way from the old weights to the tuned ones. The first network that forgets nothing is taken.

If all of them forget something, only the known images and the thresholds are new. Source: Wortsman et al. 2022."""


def _blend(old: mednet.MedNet, tuned: mednet.MedNet, share: float) -> mednet.MedNet:
    """Return a network whose last layers are between the old and the tuned ones.

    The other layers are not blended, because -0.0 would become 0.0, and the rehearsal knows its trunk by its bits. The
    numbers are rounded to half precision, as they are stored, so that the thresholds fit the stored network.
    """
    mixed = copy.deepcopy(old)
    with torch.no_grad():
        for own, new in zip(_last_layers(mixed), _last_layers(tuned), strict=True):
            own.copy_(own.lerp(new, share).half())
    return mixed


def _last_layers(net: mednet.MedNet) -> list[torch.nn.Parameter]:
    return [*net.fc2.parameters(), *net.fc3.parameters()]


def _is_worse(before: promotion_gate.Predictions, after: Adapted, memory: Rehearsal, classes: Sequence[str]) -> bool:
    """Return True if more validation images are wrong than before, beyond chance, or the gate finds a class worse."""
    inside = memory.valid_labels < len(classes)
    both = before, _predictions(after, memory, len(classes))
    right = [(predictions.label == memory.valid_labels)[inside] for predictions in both]
    if promotion_gate.significant(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())):
        return True
    return any(
        line.worse
        for line in promotion_gate.compare([promotion_gate.ReferenceSet("", memory.valid_labels, *both)], classes)
    )


def _predictions(adapted: Adapted, memory: Rehearsal, classes: int) -> promotion_gate.Predictions:
    logits, features = predict(adapted.net, memory.valid)
    probabilities = calibration.probabilities(logits, adapted.temperature)
    filed = adapted.limits.accept(probabilities, adapted.known.distance(features), classes)
    return promotion_gate.Predictions(probabilities[:, :classes].argmax(axis=1), filed)


def tuned_on_rehearsal(net: mednet.MedNet, memory: Rehearsal) -> mednet.MedNet:
    """Return a copy tuned on the rehearsal alone. With wrong labels in it, a gate must refuse the result."""
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
    """Return outputs of the first linear layer for the site's images and changed copies of them, with labels."""
    draws = RandomDraws(torch.Generator().manual_seed(tuning.seed), len(images))
    names = [classes[label] if label < len(classes) else "outlier" for label in labels.tolist()]
    variations = [VARIATIONS.get(name, VARIATIONS["outlier"]) for name in names]
    outputs = [rehearsal.layer_outputs(net, images)]
    for _ in range(tuning.copies):
        floats = hospital_renderings.scaled(torch.from_numpy(images).float())
        moved = hospital_renderings.repositioned(floats, variations, draws)
        toned = hospital_renderings.with_other_tones(moved, variations, draws)
        # The site's own films are framed alike. Copies in other frames would only be known images of nothing.
        copies = hospital_renderings.degraded(toned, draws, framed=0.0)
        outputs.append(rehearsal.layer_outputs(net, (copies * 255).round().byte().numpy()))
    return np.concatenate(outputs), np.tile(labels, tuning.copies + 1)


def _tune(
    net: mednet.MedNet,
    memory: Rehearsal,
    before: calibration.Logits,
    site: tuple[LayerOutputs, npt.NDArray[np.int64]],
    tuning: Tuning,
) -> None:
    """Learn the site's labels, and keep the logits ``before`` of the rehearsal (distillation, Hinton et al. 2015)."""
    outputs, labels = site
    targets = torch.from_numpy(calibration.probabilities(before)).float()
    net.train()
    rng = np.random.default_rng(tuning.seed)
    optimizer = torch.optim.SGD(_last_layers(net), lr=tuning.learning_rate, momentum=tuning.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, tuning.steps)
    chances = _balanced_chances(labels)
    for _ in range(tuning.steps):
        chosen = rng.choice(len(outputs), tuning.site, p=chances)
        rehearsed = rng.integers(0, len(memory.train), tuning.rehearsed)
        inputs = torch.from_numpy(np.concatenate([outputs[chosen], memory.train[rehearsed]]))
        logits, _ = _last_layers_of(net, inputs)
        site_loss = functional.cross_entropy(logits[: tuning.site], torch.from_numpy(labels[chosen]))
        rehearsal_loss = functional.cross_entropy(logits[tuning.site :], targets[rehearsed])
        optimizer.zero_grad()
        (site_loss * tuning.weight + rehearsal_loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()


def _balanced_chances(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the probability of each image by which every label is drawn equally often."""
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return np.asarray(weights / weights.sum())


def _last_layers_of(net: mednet.MedNet, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and penultimate features from outputs of the first linear layer."""
    narrow = net.act(net.fc2(net.drop(inputs)))
    return net.fc3(net.drop(narrow)), narrow


@torch.inference_mode()
def predict(net: mednet.MedNet, inputs: LayerOutputs) -> tuple[calibration.Logits, calibration.Features]:
    """Return logits (n, k) and penultimate features (n, d) from outputs of the first linear layer."""
    logits, narrow = _last_layers_of(net.eval(), torch.from_numpy(inputs))
    return logits.numpy(), narrow.numpy()


def calibrate(
    net: mednet.MedNet,
    memory: Rehearsal,
    outputs: LayerOutputs,
    labels: npt.NDArray[np.int64],
    classes: int,
    accept_rate: float,
) -> Adapted:
    """Set known images, the site's among them, and thresholds, on images that the network was not tuned on.

    ``outputs`` are those of the first linear layer for the site's images, with their ``labels``.
    """
    rehearsed = memory.train[memory.train_labels < classes]
    _, features = predict(net, np.concatenate([rehearsed, outputs[labels < classes]]))
    known = out_of_distribution.fit(features)
    valid = memory.valid_labels < classes
    logits, valid_features = predict(net, memory.valid[valid])
    valid_labels = memory.valid_labels[valid]
    temperature = calibration.temperature(logits, valid_labels, calibration.platt_smoothing(valid_labels))
    probabilities = calibration.probabilities(logits, temperature)
    confidence, distance = probabilities[:, :classes].max(axis=1), known.distance(valid_features)
    limits = calibration.thresholds(confidence, distance, accept_rate)
    review_rate = 1 - float(limits.accept(probabilities, distance, classes).mean())
    return Adapted(net, known, temperature, limits, confidence, distance, review_rate)
