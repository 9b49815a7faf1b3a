"""The network on a CPU by ONNX Runtime. Needs the extra ``mednet-watcher[onnx]``.

The same float32 numbers in another order of additions: logits differ in their
last digits. ``make inference`` measures what it gains over torch, and counts
the decisions that are alike. It is kept from telling anybody of its work.
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
"""Of 2022, which has all that is used here: every release of ONNX Runtime since then reads it."""

PART = 64
"""Images at a time: it keeps the memory of the largest batch it ever had, and larger ones are no faster."""

_BROKEN = (ImportError, AttributeError, TypeError, OSError, ValueError, RuntimeError)
"""What importing a package raises that is not there, is half there, or does not go with another one."""


class Unusable(Exception):
    """ONNX Runtime can not compute this network here; the text says why. ``missing``: it is simply not installed."""

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def load(net: mednet.MedNet, side: int, threads: int) -> Callable[[Array], tuple[Array, Array]]:
    """What gives logits (n, classes) and features (n, hidden[1]) of images (n, 1, side, side).

    ``side`` is that of the images it will be given, ``threads`` are those of one batch. What it raises
    is RuntimeError, as of torch.

    Raises:
        Unusable: it, or onnx, is not installed or does not work, or it has no operator for a layer.
    """
    silence()
    try:
        import onnxruntime

        own = _own_errors(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # it raises its errors: standard error is not where they belong as well
        # Threads that wait for the next layer by turning round would take the cores from those that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        made = model(net, side)
    except _BROKEN as error:
        raise Unusable(f"{type(error).__name__}: {error}", missing=isinstance(error, ModuleNotFoundError)) from error
    try:
        session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    except own as error:
        raise Unusable(str(error)) from error

    def part(images: Array) -> tuple[Array, Array]:
        try:
            logits, features = session.run(["logits", "features"], {"images": images})
        except own as error:
            raise RuntimeError(f"ONNX Runtime: {error}") from error
        return logits, features

    def through(images: Array) -> tuple[Array, Array]:
        parts = [part(images[start : start + PART]) for start in range(0, len(images), PART)]
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[return-value]

    return through


def silence() -> None:
    """Keep it from telling Microsoft of its sessions, which its official builds do from 1.29 on. Before it is imported.

    Source: its Privacy.md, "Disable all 1DS telemetry at runtime": no uploader, no event and no device identifier.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _own_errors(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Its exceptions, which have no ancestor of their own."""
    found = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return tuple(each for each in found if isinstance(each, type) and issubclass(each, Exception))


def model(net: mednet.MedNet, side: int) -> bytes:
    """The network as an ONNX model for images (n, 1, side, side), any number of them at a time."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    numbers: list[onnx.TensorProto] = []

    def add(layer: nn.Module, source: str, result: str) -> None:
        kind, attributes, tensors = _operator(layer)
        names = [f"{result}.{index}" for index in range(len(tensors))]
        numbers.extend(numpy_helper.from_array(each, name) for each, name in zip(tensors, names, strict=True))
        nodes.append(helper.make_node(kind, [source, *names], [result], **attributes))

    value = "images"
    layers = [*net.convs, nn.Flatten(), *_flat(net.fc1), net.act, net.fc2, net.act]
    for index, layer in enumerate(layers):
        result = "features" if index == len(layers) - 1 else f"layer{index}"
        add(layer, value, result)
        value = result
    add(net.fc3, value, "logits")

    narrow, classes = net.config.hidden[1], net.config.classes
    graph = helper.make_graph(
        nodes,
        "mednet",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, side, side])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", narrow]),
        ],
        numbers,
    )
    opset = helper.make_opsetid("", OPSET)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString())


def _flat(layer: nn.Module) -> list[nn.Module]:
    return list(layer) if isinstance(layer, nn.Sequential) else [layer]


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any], list[Array]]:
    """The ONNX operator of a layer, with its attributes and tensors."""
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


def _tensors(*found: torch.Tensor | None) -> list[Array]:
    return [each.detach().cpu().numpy() for each in found if each is not None]
