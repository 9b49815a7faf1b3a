"""Compute an out-of-distribution score: the distance of an image from all images the network was trained on.

It is the cosine distance of the penultimate features to those of the nearest known image (Sun et al. 2022,
"Out-of-Distribution Detection with Deep Nearest Neighbors"). Of the scores compared in docs/study/general, it sent most
images of no known class to review. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PREFIX = "ood."
"""The beginning of the names of its tensors in a checkpoint, which tells them from those of the network."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class KnownImages:
    """The features of m known images as directions (m, d) of length 1."""

    directions: Floats

    def distance(self, features: Floats) -> Floats:
        """Return 1 - cosine of each row of ``features`` (n, d) and its nearest known direction.

        The result has the shape (n,) and is from 0 to 2. For a row of zeros it is 1.
        """
        nearest = (_unit(features) @ self.directions.T).max(axis=1)
        return np.asarray(np.maximum(1 - nearest, 0), np.float32)  # rounding makes some negative

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors for a checkpoint, in half precision."""
        return {f"{PREFIX}known": self.directions.astype(np.float16)}


def fit(features: npt.NDArray[np.floating[Any]]) -> KnownImages:
    """Return the known images with these features (m, d).

    Raises:
        ValueError: There are none.
    """
    if not len(features):
        raise ValueError("features of at least one image are needed")
    return KnownImages(_unit(np.asarray(features, np.float32)).astype(np.float16).astype(np.float32))


def from_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> KnownImages | None:
    """Return the known images in the tensors of a checkpoint, or None if it is older and has none.

    Raises:
        ValueError: The tensor is not a list of directions.
    """
    directions = tensors.get(f"{PREFIX}known")
    if directions is None:
        return None
    if directions.ndim != 2 or not len(directions) or not np.isfinite(directions).all():
        raise ValueError(f"{PREFIX}known {directions.shape} is no list of directions")
    return KnownImages(np.asarray(directions, np.float32))


def _unit(rows: Floats) -> Floats:
    """Scale each row to the length 1. A row of zeros stays zero."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-6), np.float32)
