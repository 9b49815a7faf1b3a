"""Compress a trained network to one that is shipped: small and fast, with the same decisions.

Batch normalisation is folded into the convolutions. The first linear layer, 25 of the improved network's 25.1 million
parameters, becomes a product of low rank. The linear layers are tuned a little on the training images to make up for
that, and the numbers are stored in half precision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn

from watcher.model import mednet
from watcher.model.checkpoint import Checkpoint
from watcher.training.data.labelled_images import Examples
from watcher.training.fit import recipe_training


@dataclass(frozen=True)
class Tuning:
    """Settings of the tuning: epochs of plain SGD on the linear layers. The convolutions stay as they are."""

    rank: int = 64
    epochs: int = 2
    learning_rate: float = 0.005
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class TuningEpoch:
    """Figures on the validation images after an epoch. Epoch 0 is before any tuning."""

    epoch: int
    valid_loss: float
    valid_errors: int


def compress(
    net: mednet.MedNet,
    data: Examples,
    valid: Examples,
    tuning: Tuning,
    on_epoch: Callable[[TuningEpoch], None] = lambda step: None,
) -> tuple[mednet.MedNet, list[TuningEpoch]]:
    """Return the compressed network of the epoch with the fewest validation errors, and the figures of all epochs.

    The network is judged as it will be stored, in half precision.
    """
    slim = mednet.factor(mednet.fold_batch_norm(net), tuning.rank)
    loss = nn.CrossEntropyLoss(recipe_training.class_weights(data.labels, len(data.classes)))
    steps: list[TuningEpoch] = []
    best = in_half_precision(slim)
    for epoch in range(tuning.epochs + 1):
        if epoch:
            _tune(slim, data, loss, tuning, epoch)
        stored = in_half_precision(slim)
        valid_loss, wrong = recipe_training.judge(stored, valid, loss)
        step = TuningEpoch(epoch, valid_loss, wrong)
        if not steps or (wrong, valid_loss) < min((s.valid_errors, s.valid_loss) for s in steps):
            best = stored
        steps.append(step)
        on_epoch(step)
    return best, steps


def to_checkpoint(full: Checkpoint, slim: mednet.MedNet, temperature: float) -> Checkpoint:
    """Return the checkpoint of the compressed network, without a threshold yet."""
    return replace(
        full,
        architecture=slim.config.to_dict(),
        tensors={name: value.half().numpy() for name, value in slim.state_dict().items()},
        thresholds={"temperature": temperature},
    )


def with_results(
    slim: Checkpoint,
    full: Checkpoint,
    min_confidence: float,
    tuning: Tuning,
    steps: Sequence[TuningEpoch],
    errors: tuple[int, int],
) -> Checkpoint:
    """Add the threshold, and what people should know of the compression; ``errors`` are those before and after."""
    return replace(
        slim,
        thresholds={**slim.thresholds, "min_confidence": min_confidence},
        training={
            **full.training,
            "compressed": {**asdict(tuning), "from": full.digest, "steps": [asdict(step) for step in steps]},
            "valid_errors_full": errors[0],
            "valid_errors_shipped": errors[1],
        },
    )


def _tune(slim: mednet.MedNet, data: Examples, loss: nn.Module, tuning: Tuning, epoch: int) -> None:
    slim.train()
    for parameter in slim.convs.parameters():
        parameter.requires_grad_(False)
    linear = [parameter for parameter in slim.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(linear, lr=tuning.learning_rate)
    order = np.random.default_rng([tuning.seed, epoch]).permutation(len(data.labels))
    for images, labels in recipe_training.batches(data, tuning.batch_size, order):
        optimizer.zero_grad()
        loss(slim(images).logits, labels).backward()
        optimizer.step()


def in_half_precision(net: mednet.MedNet) -> mednet.MedNet:
    """Return a copy whose numbers went through half precision, as they do on disk."""
    copied = copy.deepcopy(net).eval()
    with torch.no_grad():
        for tensor in copied.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return copied
