"""From any size to 64 x 64: the one place where it is chosen how.

``make squash`` measures the choices; README.md has its table.
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


def to_64(levels: Levels) -> Grey:
    """Squash to (64, 64) of 8 bits; the aspect ratio is not kept.

    A 64 x 64 8-bit grey image comes back pixel for pixel. Deep levels are
    scaled by their own minimum and maximum, once resampled.
    """
    if levels.dtype != np.uint8:
        return _deep(levels.astype(np.float32, copy=False))
    if levels.shape == (SIDE, SIDE):
        return np.asarray(levels, np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels))
    grey = image if image.mode == "L" else image.convert("L")
    return np.asarray(grey if grey.size == (SIDE, SIDE) else grey.resize((SIDE, SIDE), FILTER))


def _deep(levels: npt.NDArray[np.float32]) -> Grey:
    finite = np.isfinite(levels)
    if not finite.all():  # no number: no level that anything could be scaled by
        levels = np.where(finite, levels, levels[finite].min() if finite.any() else 0)
    if levels.shape != (SIDE, SIDE):
        levels = np.asarray(Image.fromarray(np.ascontiguousarray(levels)).resize((SIDE, SIDE), FILTER))
    exact = levels.astype(np.float64)
    low, span = exact.min(), exact.max() - exact.min()
    scaled = np.rint((exact - low) * (255.0 / span)) if span else np.zeros(exact.shape)
    return np.asarray(scaled, dtype=np.uint8)
