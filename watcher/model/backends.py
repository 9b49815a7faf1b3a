"""Choose the library that computes the network.

On a GPU it is torch. On a CPU it is ONNX Runtime if that is installed, or else torch with oneDNN's layout.
``make inference`` compares them.
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
    """A network that is ready to compute.

    ``compute`` takes standardised images (n, 1, 64, 64) and returns logits (n, classes) and features (n, 80), all
    float32. It computes only the part of the images that the features depend on (``MedNetConfig.used_side``). The
    result is the same, and the shipped network takes a seventh less work.
    """

    runtime: Literal["torch", "onnxruntime"]
    compute: Callable[[Array], tuple[Array, Array]]
    note: str | None = None
    """The reason why ONNX Runtime is not used although it is installed."""


def engine(
    net: mednet.MedNet, device: torch.device, runtime: Runtime = "auto", precision: Precision = "float32"
) -> Engine:
    """Return the fastest engine for a network on a device.

    Args:
        net: The network. It stays on its device.
        device: The device to compute on.
        runtime: The library to use on a CPU. A GPU always uses torch.
        precision: The precision of the convolutions on a CPU. bfloat16 is used only where it is faster, by torch.

    Raises:
        Fatal: ONNX Runtime was asked for and cannot be used, or the network is for images of another size (exit
            code 4).
    """
    if net.config.side != decode.SIDE:
        raise Fatal(
            f"the weights are for images of {net.config.side} x {net.config.side} pixels",
            f"Set model.weights to a file for {decode.SIDE} x {decode.SIDE} pixels.",
            Exit.MODEL,
        )
    if device.type != "cpu":
        return Engine("torch", _torch_compute(net, device))
    if precision == "bfloat16" and onednn_backend.fast_in_bfloat16():
        compute = _onednn_compute(net, torch.bfloat16)
        if compute is not None:
            return Engine("torch", compute)
    note = None
    if runtime != "torch":
        try:
            return Engine("onnxruntime", _onnx_runtime_compute(net))
        except onnx_backend.Unusable as error:
            if runtime == "onnxruntime":
                raise Fatal(
                    f"model.runtime is onnxruntime, which can not be used: {error}",
                    "Install mednet-watcher[onnx], or set model.runtime to auto or torch.",
                    Exit.MODEL,
                ) from error
            note = None if error.missing else f"onnxruntime can not be used: {error}"
    return Engine("torch", _onednn_compute(net, torch.float32) or _torch_compute(net, device), note)


def _onnx_runtime_compute(net: mednet.MedNet) -> Callable[[Array], tuple[Array, Array]]:
    side = net.config.used_side
    compute = onnx_backend.load(net, side, torch.get_num_threads())
    return lambda images: compute(np.ascontiguousarray(images[:, :, :side, :side]))


def _onednn_compute(net: mednet.MedNet, precision: torch.dtype) -> Callable[[Array], tuple[Array, Array]] | None:
    convolutions = onednn_backend.convolutions(net, precision)
    if convolutions is None:
        return None
    side = net.config.used_side

    @torch.inference_mode()
    def compute(images: Array) -> tuple[Array, Array]:
        scores = net.head(convolutions(torch.from_numpy(images)[:, :, :side, :side]))
        return scores.logits.numpy(), scores.features.numpy()

    return compute


def _torch_compute(net: mednet.MedNet, device: torch.device) -> Callable[[Array], tuple[Array, Array]]:
    # in the channels-last layout, these convolutions are about a fifth faster on CPUs
    moved = net if device.type == "cpu" else copy.deepcopy(net).to(device)
    moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = net.config.used_side

    @torch.inference_mode()
    def compute(images: Array) -> tuple[Array, Array]:
        batch = torch.from_numpy(images)[:, :, :side, :side].to(device)
        scores = moved(batch.to(memory_format=torch.channels_last))
        return scores.logits.float().cpu().numpy(), scores.features.float().cpu().numpy()

    return compute
