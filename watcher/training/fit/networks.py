"""Build the networks that trainings have written."""

from __future__ import annotations

import torch

from watcher.model import mednet
from watcher.model.checkpoint import Checkpoint


def build(checkpoint: Checkpoint) -> mednet.MedNet:
    """Return the network of a checkpoint that a training wrote, in evaluation mode."""
    net = mednet.MedNet(mednet.MedNetConfig.from_dict(checkpoint.architecture))
    net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in checkpoint.tensors.items()})
    return net.eval()
