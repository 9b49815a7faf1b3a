"""Resize pictures of any size to 64 x 64. Training and the daemon share the method that is chosen here.

``make fits`` compares the methods, and docs/fits.md has its results.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 64
"""The height and width of the model's input, in pixels. Images of MedNIST have this size."""

FILTER = Image.Resampling.BILINEAR

Grey = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
"""Grey levels (height, width) of 8 bits or as floats of any depth, or 8-bit colours (height, width, 3)."""


def to_64(levels: Levels, resampling: Image.Resampling = FILTER) -> Grey:
    """Resample a picture to 64 x 64 grey levels of 8 bits.

    A picture that is not square is filled up with the pixels at its edges. A 64 x 64 8-bit grey picture does not
    change. Levels of more than 8 bits are scaled by their own minimum and maximum after resampling.
    """
    if levels.dtype != np.uint8:
        return _scaled(_square(Image.fromarray(_finite(levels.astype(np.float32, copy=False))), resampling))
    if levels.shape == (SIDE, SIDE):
        return np.asarray(levels, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels))
    return np.asarray(_square(image if image.mode == "L" else image.convert("L"), resampling), np.uint8)


def _square(image: Image.Image, resampling: Image.Resampling) -> npt.NDArray[np.generic]:
    """Resample a picture so that its longer side is 64, and fill it up to a square."""
    longest = max(image.size)
    width, height = (max(1, round(side * SIDE / longest)) for side in image.size)
    small = np.asarray(image if image.size == (width, height) else image.resize((width, height), resampling))
    if small.shape == (SIDE, SIDE):
        return small
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    margins = ((top, SIDE - height - top), (left, SIDE - width - left))
    return np.pad(small, margins, "edge")


def _finite(levels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Replace levels that are not finite by the lowest finite one, so that they do not influence the scale."""
    finite = np.isfinite(levels)
    if finite.all():
        return np.ascontiguousarray(levels)
    return np.where(finite, levels, levels[finite].min() if finite.any() else np.float32(0))


def _scaled(levels: npt.NDArray[np.generic]) -> Grey:
    """Scale levels so that the lowest is 0 and the highest is 255. Equal levels all become 0."""
    exact = levels.astype(np.float64)
    low, span = exact.min(), exact.max() - exact.min()
    scaled = np.rint((exact - low) * (255.0 / span)) if span else np.zeros(exact.shape)
    return np.asarray(scaled, dtype=np.uint8)
