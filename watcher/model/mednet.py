"""Define the networks: NVIDIA's MedNet, the improved one, and the one that the study led to.

One dataclass describes each network, and also its forms for inference: with batch normalisation folded into the
convolutions, and with the first linear layer factored. Checkpoints store it, so that a weights file describes itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MedNetConfig:
    """A MedNet: convolutions without padding, then three linear layers."""

    classes: int = 6
    side: int = 64
    filters: tuple[int, ...] = (10, 20)
    kernels: tuple[int, ...] = (5, 5)
    batch_norm: bool = True
    hidden: tuple[int, int] = (400, 80)
    activation: Literal["elu", "relu"] = "relu"
    rank: int | None = None
    """The rank of the first linear layer if it is factored into two, else None."""
    pool: int = 1
    """The side of the maximum pooling after each convolution. 1 does no pooling."""
    dropout: float = 0.0
    """The share of values that training drops before the second and third linear layer."""
    none: bool = False
    """True if the last of ``classes`` stands for "none of the others"."""

    @property
    def features(self) -> int:
        """The number of values that the convolutions return for one image."""
        return self.filters[-1] * self.map_side**2

    @property
    def map_side(self) -> int:
        """The side of the maps that the convolutions return. It is less than 1 if the kernels are too large."""
        side = self.side
        for kernel in self.kernels:
            side = (side - kernel + 1) // self.pool
        return side

    @property
    def used_side(self) -> int:
        """The side of the upper left part of an image that the features depend on.

        Pooling leaves out the last row and column of a map with an odd side, so that the convolutions before it need
        not compute them.
        """
        side = self.map_side
        for kernel in reversed(self.kernels):
            side = side * self.pool + kernel - 1
        return side

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the metadata of a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MedNetConfig:
        """Return the configuration that :meth:`to_dict` gave, after it went through JSON."""
        lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **lists})


BASELINE = MedNetConfig(filters=(5, 10), kernels=(7, 7), batch_norm=False, activation="elu")
"""NVIDIA's MedNet, as published with MedNIST."""

IMPROVED = MedNetConfig(filters=(10, 20), kernels=(5, 5), batch_norm=True, activation="relu")
"""The improved MedNet of the proof of concept."""

PLUS = MedNetConfig(filters=(16, 32, 96), kernels=(5, 5, 3), pool=2)
"""Three convolutions with pooling. It has a twentieth of the improved network's parameters (docs/study)."""


class Scores(NamedTuple):
    """The results of the network for a batch of n images."""

    logits: Tensor  # (n, classes)
    features: Tensor  # (n, hidden[1]), the penultimate layer


class MedNet(nn.Module):
    """The network. Its input is (n, 1, side, side), float32, see ``decode.standardise``."""

    def __init__(self, config: MedNetConfig) -> None:
        super().__init__()
        self.config = config
        wide, narrow = config.hidden
        self.act = nn.ELU() if config.activation == "elu" else nn.ReLU()
        self.convs = nn.Sequential(*_convolutions(config, self.act))
        self.fc1: nn.Module = (
            nn.Linear(config.features, wide)
            if config.rank is None
            else nn.Sequential(nn.Linear(config.features, config.rank, bias=False), nn.Linear(config.rank, wide))
        )
        self.drop = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(wide, narrow)
        self.fc3 = nn.Linear(narrow, config.classes)

    def forward(self, images: Tensor) -> Scores:
        """Return logits (n, classes) and penultimate features (n, hidden[1])."""
        return self.head(self.convs(images))

    def head(self, maps: Tensor) -> Scores:
        """Apply the linear layers to the maps (n, filters, h, w) that the convolutions return."""
        flat = maps.contiguous().flatten(1)  # (n, 62720) from (n, 20, 56, 56)
        wide = self.drop(self.act(self.fc1(flat)))  # (n, 400)
        narrow = self.act(self.fc2(wide))  # (n, 80)
        return Scores(self.fc3(self.drop(narrow)), narrow)  # (n, 6), (n, 80)


def _convolutions(config: MedNetConfig, act: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 1
    for filters, kernel in zip(config.filters, config.kernels, strict=True):
        layers.append(nn.Conv2d(channels, filters, kernel))
        if config.batch_norm:
            layers.append(nn.BatchNorm2d(filters))
        if config.pool > 1:  # before the activation, which is monotonic: the same result from a quarter of the values
            layers.append(nn.MaxPool2d(config.pool))
        layers.append(act)
        channels = filters
    return layers


@torch.no_grad()
def fold_batch_norm(net: MedNet) -> MedNet:
    """Return a network that computes the same without batch normalisation, for inference.

    Source: w' = w * g / sqrt(v + eps), b' = (b - m) * g / sqrt(v + eps) + beta,
    per output channel, with the running mean m and variance v (Ioffe and
    Szegedy 2015, section 3.1, "linear transform" at inference).
    """
    if not net.config.batch_norm:
        return net
    folded = MedNet(replace(net.config, batch_norm=False)).eval()
    convs = [m for m in net.convs if isinstance(m, nn.Conv2d)]
    norms = [m for m in net.convs if isinstance(m, nn.BatchNorm2d)]
    targets = [m for m in folded.convs if isinstance(m, nn.Conv2d)]
    for conv, norm, target in zip(convs, norms, targets, strict=True):
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        gain = norm.weight / torch.sqrt(variance + norm.eps)
        target.weight.copy_(conv.weight * gain[:, None, None, None])
        cast(Tensor, target.bias).copy_((cast(Tensor, conv.bias) - mean) * gain + norm.bias)
    for name in ("fc1", "fc2", "fc3"):
        getattr(folded, name).load_state_dict(getattr(net, name).state_dict())
    return folded


@torch.no_grad()
def factor(net: MedNet, rank: int) -> MedNet:
    """Return a network whose first linear layer is replaced by a product of two of the given rank.

    The factors come from a truncated singular value decomposition, the best approximation of that rank in the Frobenius
    norm (Eckart and Young 1936). The square root of each singular value goes to each factor.
    """
    dense = cast(nn.Linear, net.fc1)
    u, s, v = torch.linalg.svd(dense.weight.double(), full_matrices=False)  # (400, k), (k,), (k, 62720)
    root = s[:rank].sqrt()
    slim = MedNet(replace(net.config, rank=rank)).eval()
    state = {name: value for name, value in net.state_dict().items() if not name.startswith("fc1.")}
    state["fc1.0.weight"] = (root[:, None] * v[:rank]).float()
    state["fc1.1.weight"] = (u[:, :rank] * root).float()
    state["fc1.1.bias"] = dense.bias
    slim.load_state_dict(state)
    return slim


@torch.no_grad()
def expand(net: MedNet) -> MedNet:
    """Return a network that computes the same with one dense first layer, the inverse of :func:`factor`."""
    if net.config.rank is None:
        return net
    dense = MedNet(replace(net.config, rank=None)).eval()
    state = net.state_dict()
    down, up = state.pop("fc1.0.weight"), state.pop("fc1.1.weight")
    state["fc1.weight"] = up @ down
    state["fc1.bias"] = state.pop("fc1.1.bias")
    dense.load_state_dict(state)
    return dense
