"""Compute the network on a CPU with ONNX Runtime. Needs the extra ``mednet-watcher[onnx]``.

It computes in float32 as torch does, but the additions have another order, so that logits differ in their last digits.
``make inference`` measures how much faster it is than torch, and counts the decisions that differ. Its telemetry is
disabled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from watcher.model import mednet

Array = npt.NDArray[np.float32]

OPSET, IR_VERSION = 17, 8
"""The versions of 2022, which have all operators used here. Every later release of ONNX Runtime reads them."""

PART = 64
"""The number of images computed at once. Larger batches are not faster, and ONNX Runtime never frees their memory."""

_BROKEN = (ImportError, AttributeError, TypeError, OSError, ValueError, RuntimeError)
"""The exceptions for a package that is missing, incomplete, or incompatible with another one."""


class Unusable(Exception):
    """ONNX Runtime cannot compute this network. ``missing`` is True if it is just not installed."""

    def __init__(self, reason: str, *, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


def load(net: mednet.MedNet, side: int, threads: int) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function that computes logits (n, classes) and features (n, hidden[1]) of images (n, 1, side, side).

    The function raises RuntimeError, as torch does.

    Args:
        net: The network.
        side: The side of the images that the function will get.
        threads: The number of threads for a batch.

    Raises:
        Unusable: ONNX Runtime or onnx is not installed or does not work, or has no operator for a layer.
    """
    disable_telemetry()
    try:
        import onnxruntime

        errors = _exceptions(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, and need not go to standard error as well
        # Threads that wait for the next layer in a loop would take the cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        serialized = to_onnx(net, side)
    except _BROKEN as error:
        raise Unusable(f"{type(error).__name__}: {error}", missing=isinstance(error, ModuleNotFoundError)) from error
    try:
        session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    except errors as error:
        raise Unusable(str(error)) from error

    def compute_part(images: Array) -> tuple[Array, Array]:
        try:
            logits, features = session.run(["logits", "features"], {"images": images})
        except errors as error:
            raise RuntimeError(f"ONNX Runtime: {error}") from error
        return logits, features

    def compute(images: Array) -> tuple[Array, Array]:
        parts = [compute_part(images[start : start + PART]) for start in range(0, len(images), PART)]
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[return-value]

    return compute


def disable_telemetry() -> None:
    """Keep ONNX Runtime from reporting its sessions to Microsoft, as its official builds do from 1.29 on.

    This has an effect only before its import. Source: its Privacy.md, "Disable all 1DS telemetry at runtime": no
    uploader, no event and no device identifier.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _exceptions(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Return all exceptions of ONNX Runtime, which have no common base class of their own."""
    values = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(value for value in values if isinstance(value, type) and issubclass(value, Exception))


def to_onnx(net: mednet.MedNet, side: int) -> bytes:
    """Return the network as a serialised ONNX model for any number of images (n, 1, side, side)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(layer: nn.Module, source: str, result: str) -> None:
        kind, attributes, tensors = _operator(layer)
        names = [f"{result}.{index}" for index in range(len(tensors))]
        weights.extend(numpy_helper.from_array(tensor, name) for tensor, name in zip(tensors, names, strict=True))
        nodes.append(helper.make_node(kind, [source, *names], [result], **attributes))

    value = "images"
    layers = [*net.convs, nn.Flatten(), *_layers(net.fc1), net.act, net.fc2, net.act]
    for index, layer in enumerate(layers):
        result = "features" if index == len(layers) - 1 else f"layer{index}"
        add(layer, value, result)
        value = result
    add(net.fc3, value, "logits")

    features, classes = net.config.hidden[1], net.config.classes
    graph = helper.make_graph(
        nodes,
        "mednet",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, side, side])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", features]),
        ],
        weights,
    )
    opset = helper.make_opsetid("", OPSET)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString())


def _layers(layer: nn.Module) -> list[nn.Module]:
    return list(layer) if isinstance(layer, nn.Sequential) else [layer]


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any], list[Array]]:
    """Return the ONNX operator for a layer, with its attributes and tensors.

    Raises:
        Unusable: There is none.
    """
    if isinstance(layer, nn.Conv2d) and (layer.stride, layer.padding, layer.groups) == ((1, 1), (0, 0), 1):
        return "Conv", {}, _tensors(layer.weight, layer.bias)
    if isinstance(layer, nn.BatchNorm2d):
        tensors = _tensors(layer.weight, layer.bias, layer.running_mean, layer.running_var)
        return "BatchNormalization", {"epsilon": layer.eps}, tensors
    if isinstance(layer, nn.MaxPool2d):
        return "MaxPool", {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2}, []
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}, _tensors(layer.weight, layer.bias)
    if isinstance(layer, nn.Flatten):
        return "Flatten", {"axis": 1}, []
    if isinstance(layer, nn.ELU):
        return "Elu", {"alpha": layer.alpha}, []
    if isinstance(layer, nn.ReLU):
        return "Relu", {}, []
    raise Unusable(f"there is no operator for {layer}")


def _tensors(*tensors: torch.Tensor | None) -> list[Array]:
    return [tensor.detach().cpu().numpy() for tensor in tensors if tensor is not None]
