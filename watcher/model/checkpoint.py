"""Read and write weights files: tensors, architecture, classes, thresholds and a digest.

The format is safetensors, which runs no code when it is loaded. The metadata of the file explain its numbers, as JSON.
This module does not import torch, so that a command that only reads the metadata starts fast.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from watcher.core import atomic_write
from watcher.core.errors import Exit, Fatal
from watcher.images.decode import PREPROCESSING

FORMAT = "mednet-watcher/1"

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file, with everything needed to classify.

    ``classes`` are in the order of the logits. ``thresholds`` were fitted on validation images. ``operating`` holds
    other thresholds to choose from, each with its ``accept_rate`` and ``wrong_rate``. ``training`` describes the
    training and its results, for people. ``digest`` is the SHA-256 of tensors and metadata.
    """

    name: str
    architecture: dict[str, Any]
    classes: tuple[str, ...]
    tensors: Tensors = field(repr=False)
    thresholds: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    operating: tuple[dict[str, float], ...] = ()
    preprocessing: str = PREPROCESSING
    digest: str = ""


def save(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Write a weights file completely or not at all, and return the checkpoint with its digest.

    Raises:
        Fatal: The file cannot be written (exit code 5).
    """
    header = _header(checkpoint)
    digest = _digest(header, checkpoint.tensors)
    tensors = {name: np.asarray(value, order="C") for name, value in checkpoint.tensors.items()}
    try:
        with atomic_write.replacing(path) as partial:
            save_file(tensors, partial, metadata={"mednet": json.dumps(header), "digest": digest})
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        raise Fatal(
            f"the weights can not be written to {path}: {error}",
            "Name a file in a directory that you may write to, with room for it.",
            Exit.DIRECTORY,
        ) from error
    return replace(checkpoint, digest=digest)


def load(path: Path) -> Checkpoint:
    """Read a weights file and check it.

    Raises:
        Fatal: The file is missing, damaged, of another product, made for another preprocessing, or has invalid classes
            or thresholds. Or its name is a digest, as of promoted weights, and its content has another (exit code 4).
    """
    try:
        with path.open("rb"):
            pass  # raises PermissionError, while safetensors would say that the file does not exist
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise _fatal(f"the weights file {path} does not exist") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise _fatal(f"the weights file {path} can not be read: {error}") from error
    return _checked(path, metadata, tensors)


def _checked(path: Path, metadata: Mapping[str, str], tensors: Tensors) -> Checkpoint:
    try:
        header = json.loads(metadata["mednet"])
        known = header.pop("format") == FORMAT
        checkpoint = Checkpoint(
            **{**header, "classes": tuple(header["classes"]), "operating": tuple(header.get("operating", ()))},
            tensors=tensors,
            digest=metadata["digest"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _fatal(f"{path} is no weights file of mednet-watcher: its metadata is missing or damaged") from error
    if not known:
        raise _fatal(f"{path} was written in another format than {FORMAT}")
    if checkpoint.digest != _digest(_header(checkpoint), tensors):
        raise _fatal(f"the weights file {path} is damaged: its digest does not match its content")
    if re.fullmatch("[0-9a-f]{64}", path.stem) and path.stem != checkpoint.digest:
        raise _fatal(f"{path} holds other weights than its name says, which nobody has tested")
    if not all(is_directory_name(name) for name in checkpoint.classes):
        raise _fatal(f"{path} has a class whose name can not be the name of a directory")
    if not checkpoint.classes or len(set(checkpoint.classes)) < len(checkpoint.classes):
        raise _fatal(f"{path} has no classes, or two with the same name")
    if not _are_numbers(checkpoint.thresholds):
        raise _fatal(f"{path} has thresholds that are not numbers, or a temperature that is not above 0")
    if checkpoint.preprocessing != PREPROCESSING:
        raise _fatal(f"{path} expects other preprocessing: {checkpoint.preprocessing}")
    return checkpoint


def is_directory_name(name: object) -> bool:
    """Return True if a class can have this name, because a directory can have it."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _are_numbers(thresholds: object) -> bool:
    if not isinstance(thresholds, dict):
        return False
    numbers = all(type(value) in (int, float) and math.isfinite(value) for value in thresholds.values())
    return numbers and thresholds.get("temperature", 1) > 0


def _fatal(problem: str) -> Fatal:
    return Fatal(
        problem,
        "Set model.weights (or the option) to a readable file that was shipped, or made by train or adapt. "
        "To take back promoted weights, run: mednet-watcher rollback",
        Exit.MODEL,
    )


def _header(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": checkpoint.name,
        "architecture": checkpoint.architecture,
        "classes": list(checkpoint.classes),
        "thresholds": checkpoint.thresholds,
        "training": checkpoint.training,
        "preprocessing": checkpoint.preprocessing,
        **({"operating": list(checkpoint.operating)} if checkpoint.operating else {}),  # older files have none
    }


def _digest(header: dict[str, Any], tensors: Tensors) -> str:
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        sha.update(f"{name} {value.dtype} {value.shape}".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()
