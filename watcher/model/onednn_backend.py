"""The convolutions on a CPU in the layout of oneDNN, Intel's library below torch.

Weights and maps stay in it from the first convolution to the last: nothing is
laid out anew between two layers, and maximum pooling runs over whole vectors.
Images go through in parts, so that a part's maps stay in the processor's cache
and are small enough for malloc to keep the memory for the next part. What is
computed is the same; the order of the additions is not, so that logits differ
in their last digits. ``make inference`` measures it.

In bfloat16 the maps keep 8 bits of a value's size, sums are made in float32
all the same, and logits differ by some hundredths. It is taken only where the
processor multiplies matrices of them (AMX, Intel's server processors since
2023). Vector instructions for it alone were slower than float32 on an Intel
Xeon and faster on an AMD EPYC; torch does not tell which processor it is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from watcher.model import mednet

PART = 32
"""Images at a time. On the machine that the README names 16 and 64 were slower, one part of all the slowest."""

Layer = Callable[[Tensor], Tensor]


def fast_in_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16. No, for a torch that does not tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return capabilities is not None and bool(capabilities().get("amx_bf16"))


def convolutions(net: mednet.MedNet, precision: torch.dtype = torch.float32) -> Layer | None:
    """What ``net.convs`` does to images (n, 1, side, side), as maps (n, filters, h, w); None where oneDNN can not.

    Images and maps are float32, ``precision`` is what it is computed in.

    It can not in a build of torch without it, nor where there is a layer that
    it has none for (ELU, and batch normalisation that is not folded).
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    layers = [_layer(each, precision) for each in net.convs]
    known = [each for each in layers if each is not None]
    if len(known) < len(layers):
        return None

    def through(images: Tensor) -> Tensor:
        return torch.cat([_through(known, part.to_mkldnn(precision)) for part in images.split(PART)])  # type: ignore[no-untyped-call]

    return through


def _through(layers: list[Layer], maps: Tensor) -> Tensor:
    for layer in layers:
        maps = layer(maps)
    return maps.to_dense(torch.float32)


def _layer(module: nn.Module, precision: torch.dtype) -> Layer | None:
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        weight, bias = (each.detach().to(precision).to_mkldnn() for each in (module.weight, module.bias))
        return lambda maps: functional.conv2d(maps, weight, bias)
    if isinstance(module, nn.MaxPool2d):
        side = module.kernel_size
        return lambda maps: functional.max_pool2d(maps, side)
    return torch.relu_ if isinstance(module, nn.ReLU) else None
