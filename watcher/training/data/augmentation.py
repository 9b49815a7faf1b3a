"""Change copies of training images at random, as strongly as each class allows.

Gamma and scale remove what tells a CT of the abdomen from one of the chest, and a mirrored chest has its heart on the
wrong side. So each kind of change has a strength for each class. Linear changes of grey levels are not among the kinds,
because ``decode.standardise`` would undo them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]
_Change = Callable[[Grey, _Floats, np.random.Generator], Grey]


def apply(
    images: Grey,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    plan: Mapping[str, Mapping[str, float]],
    rng: np.random.Generator,
) -> Grey:
    """Return images (n, side, side), each changed by every kind of the plan with the strength of its class.

    The strength of ``shift`` is the most pixels, of ``rotation`` the most degrees, of ``flip`` and ``inversion`` the
    probability, of ``contrast`` the natural logarithm of the largest gamma. A kind does not change the images of a
    class that it does not name.

    Raises:
        KeyError: There is no such kind.
    """
    changed = images
    for kind, strengths in plan.items():
        change, default = KINDS[kind], strengths.get("all", 0.0)
        by_class = np.array([strengths.get(name, default) for name in classes], np.float64)
        chosen = np.flatnonzero(by_class[labels])
        if len(chosen):
            changed = changed.copy() if changed is images else changed
            changed[chosen] = change(changed[chosen], by_class[labels[chosen]], rng)
    return changed


def _shift(images: Grey, pixels: _Floats, rng: np.random.Generator) -> Grey:
    offsets = np.rint(rng.uniform(-1, 1, (2, len(images))) * pixels)  # whole pixels: nothing is blurred
    rows, columns = _grid(images)
    return _sample(images, rows - offsets[0][:, None, None], columns - offsets[1][:, None, None])


def _rotation(images: Grey, degrees: _Floats, rng: np.random.Generator) -> Grey:
    angles = np.deg2rad(rng.uniform(-1, 1, len(images)) * degrees)[:, None, None]
    rows, columns = _grid(images)
    middle = (images.shape[1] - 1) / 2
    down, right = rows - middle, columns - middle
    cos, sin = np.cos(angles), np.sin(angles)
    return _sample(images, middle + cos * down - sin * right, middle + sin * down + cos * right)


def _flip(images: Grey, chances: _Floats, rng: np.random.Generator) -> Grey:
    mirrored = rng.random(len(images)) < chances
    return np.asarray(np.where(mirrored[:, None, None], images[:, :, ::-1], images))


def _inversion(images: Grey, chances: _Floats, rng: np.random.Generator) -> Grey:
    inverted = rng.random(len(images)) < chances
    return np.where(inverted[:, None, None], 255 - images, images)


def _contrast(images: Grey, strengths: _Floats, rng: np.random.Generator) -> Grey:
    gammas = np.exp(rng.uniform(-1, 1, len(images)) * strengths)
    tables = np.rint(255 * (np.arange(256) / 255) ** gammas[:, None]).astype(np.uint8)  # (n, 256)
    return np.asarray(tables[np.arange(len(images))[:, None, None], images])


KINDS: dict[str, _Change] = {
    "shift": _shift,
    "rotation": _rotation,
    "flip": _flip,
    "inversion": _inversion,
    "contrast": _contrast,
}


def _grid(images: Grey) -> tuple[_Floats, _Floats]:
    rows, columns = np.meshgrid(*(np.arange(side, dtype=np.float64) for side in images.shape[1:]), indexing="ij")
    return rows[None], columns[None]


def _sample(images: Grey, rows: _Floats, columns: _Floats) -> Grey:
    """Interpolate grey levels between pixels, bilinearly. Beyond the edge its pixels are repeated."""
    rows, columns = np.clip(rows, 0, images.shape[1] - 1), np.clip(columns, 0, images.shape[2] - 1)
    rows, columns = np.broadcast_arrays(rows, columns)
    top, left = np.floor(rows).astype(np.intp), np.floor(columns).astype(np.intp)
    bottom, right = np.minimum(top + 1, images.shape[1] - 1), np.minimum(left + 1, images.shape[2] - 1)
    down, across = rows - top, columns - left
    which = np.arange(len(images))[:, None, None]
    upper = images[which, top, left] * (1 - across) + images[which, top, right] * across
    lower = images[which, bottom, left] * (1 - across) + images[which, bottom, right] * across
    return np.asarray(np.rint(upper * (1 - down) + lower * down), np.uint8)
