"""From any size to 64 x 64: the one place where it is chosen how.

``make fits`` measures the choices, docs/fits.md says what it found.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64
"""Height and width of the model's input, in pixels (MedNIST's own size)."""

FILTER = Image.Resampling.BILINEAR

Grey = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""Grey levels (height, width) of 8 bits or of any depth, or colours (height, width, 3) of 8 bits."""


def to_64(levels: Levels, resampling: Image.Resampling = FILTER) -> Grey:
    """Resample to (64, 64) of 8 bits. What is no square is filled up to one with what is at its edges.

    A 64 x 64 8-bit grey image comes back pixel for pixel. Deep levels are
    scaled by their own minimum and maximum, once resampled.
    """
    if levels.dtype != np.uint8:
        return _scaled(_square(Image.fromarray(_finite(levels.astype(np.float32, copy=False))), resampling))
    if levels.shape == (SIDE, SIDE):
        return np.asarray(levels, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(_square(image if image.mode == "L" else image.convert("L"), resampling), np.uint8)


def _square(image: Image.Image, resampling: Image.Resampling) -> npt.NDArray[np.generic]:
    longest = max(image.size)
    width, height = (max(1, round(side * SIDE / longest)) for side in image.size)
    small = np.asarray(image if image.size == (width, height) else image.resize((width, height), resampling))
    if small.shape == (SIDE, SIDE):
        return small
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    around = ((top, SIDE - height - top), (left, SIDE - width - left))
    return np.pad(small, around, "edge")


def _finite(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What is no number is no level that anything could be scaled by: it is as dark as the darkest."""
    finite = np.isfinite(levels)
    if finite.all():
        return np.ascontiguousarray(levels)
    return np.where(finite, levels, levels[finite].min() if finite.any() else np.float32(0))


def _scaled(levels: npt.NDArray[np.generic]) -> Grey:
    exact = levels.astype(np.float64)
    low, span = exact.min(), exact.max() - exact.min()
    scaled = np.rint((exact - low) * (255.0 / span)) if span else np.zeros(exact.shape)
    return np.asarray(scaled, dtype=np.uint8)
