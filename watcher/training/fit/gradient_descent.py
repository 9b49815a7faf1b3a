"""Train a network step by step, and average its weights on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, swa_utils

from watcher.model import mednet


@dataclass(frozen=True)
class Batch:
    """The images of one step, and the learning rate of that step."""

    images: Tensor
    """Standardised, (b, 1, 64, 64)."""
    labels: Tensor
    """Class numbers, (b,)."""
    learning_rate: float
    weight: float = 1.0
    """The weight of this batch's loss in the mean of the epoch."""


@dataclass(frozen=True)
class Averaging:
    """A mean of the weights: over the steps, or over the ends of the epochs.

    A mean over epochs begins with ``first_epoch``. ``statistics`` gives the standardised images on which batch
    normalisation of the averaged network is measured. Without it ``model`` keeps its own.
    """

    model: swa_utils.AveragedModel
    every_step: bool = True
    first_epoch: int = 1
    statistics: Callable[[], Iterable[Tensor]] | None = None

    def after_step(self, net: mednet.MedNet) -> None:
        """Take the weights into the mean, if it is one over steps."""
        if self.every_step:
            self.model.update_parameters(net)

    def after_epoch(self, net: mednet.MedNet, epoch: int) -> None:
        """Take the weights into the mean, if it is one over epochs, and measure batch normalisation.

        The statistics must be those of what the averaged weights compute. Those of the network, or a mean of them,
        do not fit. Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
        Generalization", section 3.2.
        """
        if not self.every_step and epoch >= self.first_epoch:
            self.model.update_parameters(net)
        if self.has_begun and self.statistics is not None:
            swa_utils.update_bn(self.statistics(), self.model.module)

    @property
    def has_begun(self) -> bool:
        """True as soon as weights were taken into the mean."""
        return int(self.model.n_averaged) > 0


@dataclass(frozen=True)
class Learner:
    """A network, its optimizer and its loss: all that a step of gradient descent changes or needs."""

    net: mednet.MedNet
    optimizer: Optimizer
    loss: nn.Module
    averaging: Averaging | None = None
    bfloat16: bool = False
    """True if convolutions and linear layers compute in bfloat16. The weights and the loss stay in float32."""
    max_gradient_norm: float | None = None

    @property
    def result(self) -> mednet.MedNet:
        """The network to be judged: the averaged one, as soon as there is one."""
        if self.averaging is not None and self.averaging.has_begun:
            return cast(mednet.MedNet, self.averaging.model.module)
        return self.net

    def step(self, batch: Batch) -> float:
        """Change the weights by one batch, and return the batch's mean loss before that."""
        for group in self.optimizer.param_groups:
            group["lr"] = batch.learning_rate
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits = self.net(batch.images).logits
        loss = self.loss(logits.float(), batch.labels)
        loss.backward()
        if self.max_gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.max_gradient_norm)
        self.optimizer.step()
        if self.averaging is not None:
            self.averaging.after_step(self.net)
        return float(loss.detach())
