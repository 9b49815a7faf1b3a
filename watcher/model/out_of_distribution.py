"""How far an image is from all that the network was trained on: an out-of-distribution score.

The cosine distance of its penultimate features from those of the nearest known
image (Sun et al. 2022, "Out-of-Distribution Detection with Deep Nearest
Neighbors"; of the scores compared in docs/study/general it sent most strangers
to review). No torch here: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PREFIX = "ood."
"""What its tensors are called in a checkpoint, so that they are told from the network's."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Known:
    """Directions (m, d) of the features of known images, each of length 1."""

    directions: Floats

    def distance(self, features: Floats) -> Floats:
        """1 - cosine of each row of ``features`` (n, d) and the nearest known direction: (n,), from 0 to 2.

        What has no features at all (all 0) is like nothing: 1.
        """
        nearest = (_unit(features) @ self.directions.T).max(axis=1)
        return np.asarray(np.maximum(1 - nearest, 0), np.float32)  # rounding puts some beyond

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """For a checkpoint, in half precision."""
        return {f"{PREFIX}known": self.directions.astype(np.float16)}


def fit(features: npt.NDArray[np.floating[Any]]) -> Known:
    """Remember known images by their features (m, d).

    Raises:
        ValueError: there are none.
    """
    if not len(features):
        raise ValueError("features of at least one image are needed")
    return Known(_unit(np.asarray(features, np.float32)).astype(np.float16).astype(np.float32))


def of(tensors: Mapping[str, npt.NDArray[Any]]) -> Known | None:
    """What a checkpoint's tensors hold of this, or None: weights of before know nothing of it.

    Raises:
        ValueError: it is no list of directions.
    """
    found = tensors.get(f"{PREFIX}known")
    if found is None:
        return None
    if found.ndim != 2 or not len(found) or not np.isfinite(found).all():
        raise ValueError(f"{PREFIX}known {found.shape} is no list of directions")
    return Known(np.asarray(found, np.float32))


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-6), np.float32)
