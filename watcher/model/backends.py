"""What computes the network.

On a GPU torch; on a CPU ONNX Runtime where it is installed, and torch with
oneDNN's layout where it is not. ``make inference`` compares them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import mednet, onednn_backend, onnx_backend

Runtime = Literal["auto", "torch", "onnxruntime"]
Precision = Literal["float32", "bfloat16"]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Engine:
    """``compute`` gives logits (n, classes) and features (n, 80) of standardised images (n, 1, 64, 64), all float32.

    It is given only the part of the images that can reach the features (``MedNetConfig.reach``): nothing changes,
    and of the shipped network a seventh of the work is spared.
    """

    runtime: Literal["torch", "onnxruntime"]
    compute: Callable[[Array], tuple[Array, Array]]
    note: str | None = None
    """Why it is not ONNX Runtime although that is installed."""


def engine(
    net: mednet.MedNet, device: torch.device, runtime: Runtime = "auto", precision: Precision = "float32"
) -> Engine:
    """The fastest there is for a network and a device, or the one asked for.

    ``precision`` is that of the convolutions on a CPU: bfloat16, which is torch's, only where it is faster.
    A GPU is torch's as well, whatever ``runtime`` says; the network that was given stays where it is.

    Raises:
        Fatal: exit code 4; ONNX Runtime was asked for and can not be used, or the network is for other images.
    """
    if net.config.side != decode.SIDE:
        raise Fatal(
            f"the weights are for images of {net.config.side} x {net.config.side} pixels",
            f"Set model.weights to a file for {decode.SIDE} x {decode.SIDE} pixels.",
            Exit.MODEL,
        )
    if device.type != "cpu":
        return Engine("torch", _by_torch(net, device))
    if precision == "bfloat16" and onednn_backend.fast_in_bfloat16():
        half = _by_onednn(net, torch.bfloat16)
        if half is not None:
            return Engine("torch", half)
    note = None
    if runtime != "torch":
        try:
            return Engine("onnxruntime", _by_onnx_runtime(net))
        except onnx_backend.Unusable as error:
            if runtime == "onnxruntime":
                raise Fatal(
                    f"model.runtime is onnxruntime, which can not be used: {error}",
                    "Install mednet-watcher[onnx], or set model.runtime to auto or torch.",
                    Exit.MODEL,
                ) from error
            note = None if error.missing else f"onnxruntime can not be used: {error}"
    return Engine("torch", _by_onednn(net, torch.float32) or _by_torch(net, device), note)


def _by_onnx_runtime(net: mednet.MedNet) -> Callable[[Array], tuple[Array, Array]]:
    reach = net.config.reach
    through = onnx_backend.load(net, reach, torch.get_num_threads())
    return lambda images: through(np.ascontiguousarray(images[:, :, :reach, :reach]))


def _by_onednn(net: mednet.MedNet, precision: torch.dtype) -> Callable[[Array], tuple[Array, Array]] | None:
    convolutions = onednn_backend.convolutions(net, precision)
    if convolutions is None:
        return None
    reach = net.config.reach

    @torch.inference_mode()
    def compute(images: Array) -> tuple[Array, Array]:
        scores = net.head(convolutions(torch.from_numpy(images)[:, :, :reach, :reach]))
        return scores.logits.numpy(), scores.features.numpy()

    return compute


def _by_torch(net: mednet.MedNet, device: torch.device) -> Callable[[Array], tuple[Array, Array]]:
    # channels-last: these convolutions run about a fifth faster on CPUs that way
    there = net if device.type == "cpu" else copy.deepcopy(net).to(device)
    there = there.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reach = net.config.reach

    @torch.inference_mode()
    def compute(images: Array) -> tuple[Array, Array]:
        batch = torch.from_numpy(images)[:, :, :reach, :reach].to(device)
        scores = there(batch.to(memory_format=torch.channels_last))
        return scores.logits.float().cpu().numpy(), scores.features.float().cpu().numpy()

    return compute
