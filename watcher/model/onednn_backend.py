"""Compute the convolutions on a CPU in the memory layout of oneDNN, Intel's library below torch.

Weights and maps keep this layout from the first convolution to the last, so that nothing is converted between two
layers, and maximum pooling works on whole vectors. Images are computed in parts. The maps of a part stay in the
processor's cache, and they are small enough for malloc to keep the memory for the next part. The additions have another
order than in torch, so that logits differ in their last digits. ``make inference`` measures the speed.

In bfloat16 the maps keep 8 significant bits. Sums are still made in float32, and logits differ by some hundredths. It
is used only on processors that multiply matrices of bfloat16 (AMX, Intel's server processors since 2023). With vector
instructions alone, bfloat16 was slower than float32 on an Intel Xeon and faster on an AMD EPYC, and torch does not tell
which processor it runs on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from watcher.model import mednet

PART = 32
"""The number of images in a part. On the machine named in the README, 16 and 64 were slower, and one part slowest."""

Layer = Callable[[Tensor], Tensor]


def fast_in_bfloat16() -> bool:
    """Return True if this processor multiplies matrices of bfloat16, and False if torch does not tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and bool(capabilities().get("amx_bf16"))


def convolutions(net: mednet.MedNet, precision: torch.dtype = torch.float32) -> Layer | None:
    """Return a function that does the same as ``net.convs``.

    It takes images (n, 1, side, side) and returns maps (n, filters, h, w), both float32. ``precision`` is the one to
    compute in.

    Returns:
        None if this build of torch has no oneDNN, or oneDNN has no operator for a layer (ELU, and batch normalisation
        that is not folded).
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    operators = [_operator(layer, precision) for layer in net.convs]
    layers = [operator for operator in operators if operator is not None]
    if len(layers) < len(operators):
        return None

    def compute(images: Tensor) -> Tensor:
        return torch.cat([_apply(layers, part.to_mkldnn(precision)) for part in images.split(PART)])  # type: ignore[no-untyped-call]

    return compute


def _apply(layers: list[Layer], maps: Tensor) -> Tensor:
    for layer in layers:
        maps = layer(maps)
    return maps.to_dense(torch.float32)


def _operator(module: nn.Module, precision: torch.dtype) -> Layer | None:
    """Return the oneDNN operator for a layer, or None if there is none."""
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        weight, bias = (tensor.detach().to(precision).to_mkldnn() for tensor in (module.weight, module.bias))
        return lambda maps: functional.conv2d(maps, weight, bias)
    if isinstance(module, nn.MaxPool2d):
        side = module.kernel_size
        return lambda maps: functional.max_pool2d(maps, side)
    return torch.relu_ if isinstance(module, nn.ReLU) else None
