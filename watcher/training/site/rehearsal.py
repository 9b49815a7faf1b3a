"""Store what a site needs of the base data to adapt the network: features, and no images.

The convolutions and the first linear layer are never tuned, so their outputs for some thousand images are stored as
bytes. The last layers are tuned on these together with the site's images, so that nothing is forgotten, and judged on
images that they were never tuned on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.images import decode
from watcher.model import mednet

LayerOutputs = npt.NDArray[np.float32]

FORMAT = "mednet-watcher/rehearsal/1"

BATCH = 256


@dataclass(frozen=True)
class Rehearsal:
    """Outputs (n, d) of the first linear layer, with labels (n,); the label after the last class is for outliers.

    The last layers are tuned on ``train`` and judged on ``valid``. ``trunk`` is the digest of the layers before them.
    """

    trunk: str
    train: LayerOutputs
    train_labels: npt.NDArray[np.int64]
    valid: LayerOutputs
    valid_labels: npt.NDArray[np.int64]


def trunk(net: mednet.MedNet) -> str:
    """Return the digest of all layers before the second linear one."""
    sha = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if not name.startswith(("fc2.", "fc3.")):
            sha.update(f"{name} {tuple(value.shape)}".encode())
            sha.update(value.half().numpy().tobytes())
    return sha.hexdigest()


@torch.inference_mode()
def layer_outputs(net: mednet.MedNet, images: npt.NDArray[np.uint8]) -> LayerOutputs:
    """Return the activated outputs (n, d) of the first linear layer for images (n, 64, 64)."""
    net.eval()
    rows = [np.zeros((0, net.config.hidden[0]), np.float32)]
    for start in range(0, len(images), BATCH):
        maps = net.convs(torch.from_numpy(decode.standardise(images[start : start + BATCH])))
        rows.append(net.act(net.fc1(maps.contiguous().flatten(1))).numpy())
    return np.concatenate(rows)


def save(memory: Rehearsal, path: Path) -> None:
    """Write a rehearsal, a byte for each number: outputs of ReLU, scaled by the largest of their column."""
    top = np.maximum(np.concatenate([memory.train, memory.valid]).max(axis=0), 1e-6).astype(np.float32)
    tensors = {
        "scale": top / 255,
        "train": np.rint(memory.train / top * 255).clip(0, 255).astype(np.uint8),
        "train_labels": memory.train_labels.astype(np.uint8),
        "valid": np.rint(memory.valid / top * 255).clip(0, 255).astype(np.uint8),
        "valid_labels": memory.valid_labels.astype(np.uint8),
    }
    with atomic_write.replacing(path) as partial:
        save_file(tensors, partial, metadata={"rehearsal": json.dumps({"format": FORMAT, "trunk": memory.trunk})})


def load(path: Path) -> Rehearsal:
    """Read a rehearsal.

    Raises:
        Fatal: The file is missing, damaged or something else (exit code 4).
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["rehearsal"])
            tensors: Mapping[str, npt.NDArray[Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if header["format"] != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        train, valid = (tensors[part].astype(np.float32) * tensors["scale"] for part in ("train", "valid"))
        labels = (tensors[f"{part}_labels"].astype(np.int64) for part in ("train", "valid"))
        return Rehearsal(header["trunk"], train, next(labels), valid, next(labels))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise Fatal(
            f"the rehearsal {path} can not be read: {error}",
            "Take the one that came with the weights, or name another with --rehearsal.",
            Exit.MODEL,
        ) from error


FILENAME = "rehearsal.safetensors"
